"""``legacy-cuda doctor``: what is wrong with this machine, or with what a log says."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from legacy_cuda.catalog import Gpu
from legacy_cuda.cli import output
from legacy_cuda.errors import SurroundingsError, UserError

if TYPE_CHECKING:
    from legacy_cuda.catalog.doctor import Rule
    from legacy_cuda.doctor.diagnosis import Diagnosis
    from legacy_cuda.doctor.facts import Facts
    from legacy_cuda.doctor.logs import Scan
    from legacy_cuda.doctor.rules import Finding

_STYLES = {"error": ("red", "bold"), "warning": ("yellow", "bold"), "info": ("bold",)}
_INDENT = 9
_SHOWN = 300  # characters of a log's line


def add(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "doctor",
        help="what is wrong with this machine or a log, why, and the fix",
        description="Look at this machine's GPUs, driver, libraries and kernel log, or at a log, "
        "and say what is wrong, why, and what mends it: causes first, what follows below them. "
        "Reads files, dmesg or journalctl, the driver through NVML, and what engines answer on "
        "127.0.0.1. Changes nothing.",
        epilog="examples:\n"
        "  legacy-cuda doctor\n"
        "  legacy-cuda doctor --log ollama.log --gpu p40\n"
        "  journalctl -u ollama | legacy-cuda doctor --log -\n"
        "  legacy-cuda doctor explain D2\n"
        "  legacy-cuda doctor explain           (every rule)\n"
        "  legacy-cuda doctor --bundle doctor.tar.gz\n"
        "  legacy-cuda doctor --watch 10\n\n"
        "exit codes: 0 no error found, 1 an error found, 2 bad input, 3 a file cannot be read or "
        "written",
        formatter_class=output.HelpFormatter,
    )
    parser.add_argument(
        "words", nargs="*", metavar="explain RULE", help="say all that is known of a rule"
    )
    parser.add_argument("--log", metavar="FILE", help="judge this log only; -: standard input")
    parser.add_argument(
        "--root", default="/", metavar="DIR", help="a recorded tree instead of this machine"
    )
    parser.add_argument(
        "--gpu",
        action="append",
        metavar="GPU",
        help="the card that the log is about, for its fixes (default: this machine's)",
    )
    parser.add_argument(
        "--bundle",
        metavar="FILE",
        help="write page and JSON without names, addresses and keys into a .tar.gz as well",
    )
    parser.add_argument(
        "--watch",
        nargs="?",
        const=30.0,
        type=_seconds,
        metavar="SECONDS",
        help="look again and again, and print what changed (default: every 30 seconds)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.set_defaults(run=run)


def _seconds(text: str) -> float:
    """A time to wait: at least a second, at most a day."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 1 and 86400 seconds")
    return seconds


def run(arguments: argparse.Namespace) -> int:
    """Examine and print; 1 where an error was found."""
    import dataclasses

    if arguments.words:
        return _explain(arguments.words, arguments.json)
    from legacy_cuda.doctor.diagnosis import diagnose, diagnose_log
    from legacy_cuda.doctor.examine import PROBES, examine

    root = Path(arguments.root)
    if not root.is_dir():
        raise UserError(f"there is no folder {arguments.root!r}", next_step="give --root a folder")
    root = root.resolve()
    named = tuple(output.read_gpus(arguments.gpu)) if arguments.gpu else ()
    scan = None
    if arguments.log is None:
        facts = dataclasses.replace(examine(root), named=named)
        diagnosis = diagnose(facts)
    else:
        from legacy_cuda.catalog.doctor import rules

        scan = _scan(arguments.log, [rule for rule in rules() if rule.patterns])
        facts = examine(root, probes={name: PROBES[name] for name in ("pci", "system")})
        facts = dataclasses.replace(facts, named=named)
        diagnosis = diagnose_log(facts, scan, _name(arguments.log))
    if arguments.watch is not None:
        return _watch(arguments, facts, diagnosis)
    if arguments.bundle is not None:
        _bundle(Path(arguments.bundle), root, facts, diagnosis, scan)
    if arguments.json:
        output.document("doctor", document(facts, diagnosis, scan))
    else:
        _show(facts, diagnosis, scan)
        if arguments.bundle is not None:
            print(f"written: {arguments.bundle}; read it before you pass it on")
    return 1 if diagnosis.verdict == "errors" else 0


def _bundle(path: Path, root: Path, facts: Facts, diagnosis: Diagnosis, scan: Scan | None) -> None:
    """Write the page and the document, redacted.

    Raises:
        SurroundingsError: the file cannot be written.
    """
    import contextlib
    import io
    import json
    import os
    from dataclasses import replace

    from legacy_cuda.doctor import bundle, redact
    from legacy_cuda.doctor.place import Place

    place = Place(root)
    known = bundle.known(place, os.environ if place.live else {})
    clean = redact.diagnosis(diagnosis, known)
    if facts.system is not None:
        name = redact.redacted(facts.system.name, known)
        facts = replace(facts, system=replace(facts.system, name=name))
    if facts.kernel is not None and (release := facts.kernel.release) is not None:
        release = replace(release, value=redact.redacted(release.value, known))
        facts = replace(facts, kernel=replace(facts.kernel, release=release))
    page = io.StringIO()
    with contextlib.redirect_stdout(page):
        _show(facts, clean, scan)
    content = document(facts, clean, scan)
    for key in ("facts", "system"):
        content[key] = redact.document(content[key], known)
    content = {"schema": "legacy-cuda/doctor/1", **content}
    files = {"doctor.txt": page.getvalue(), "doctor.json": json.dumps(content, indent=2) + "\n"}
    try:
        bundle.write(path, bundle.packed(files))
    except OSError as error:
        raise SurroundingsError(
            f"{path} cannot be written", str(error), "name a file in a folder of yours"
        ) from error


def _watch(arguments: argparse.Namespace, facts: Facts, diagnosis: Diagnosis) -> int:
    """Show the machine, then look again until interrupted; each time only what changed.

    Raises:
        UserError: it goes with no option that makes one document or file.
    """
    import time
    from dataclasses import replace

    from legacy_cuda.doctor.diagnosis import changes, diagnose
    from legacy_cuda.doctor.examine import examine

    if arguments.json or arguments.bundle or arguments.log:
        raise UserError(
            "--watch goes with neither --json nor --bundle nor --log",
            next_step="leave one of them out",
        )
    _show(facts, diagnosis, None)
    try:
        while True:
            sys.stdout.flush()
            time.sleep(arguments.watch)
            now = diagnose(replace(examine(Path(arguments.root).resolve()), named=facts.named))
            lines = changes(diagnosis, now)
            if lines:
                print(f"\n{time.strftime('%H:%M:%S')}")
            for line in lines:
                print(f"  {_line(line)}")
            diagnosis = now
    except KeyboardInterrupt:
        print()
    return 1 if diagnosis.verdict == "errors" else 0


def _name(path: str) -> str:
    return "standard input" if path == "-" else path


def _scan(path: str, rules: list[Rule]) -> Scan:
    """Look through a log.

    Raises:
        UserError: there is no such file, or it is compressed.
        SurroundingsError: it cannot be read.
    """
    from legacy_cuda.doctor import logs

    try:
        if path == "-":
            if sys.stdin is None:
                raise UserError(
                    "standard input is closed", next_step="give --log a file, or pipe a log into it"
                )
            return logs.scan(logs.blocks(sys.stdin.buffer), rules)
        with Path(path).open("rb") as file:
            return logs.scan(logs.blocks(file), rules)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError) as error:
        raise UserError(
            f"there is no log {path!r}", str(error), "name a file, or - for standard input"
        ) from error
    except OSError as error:
        raise SurroundingsError(
            f"the log {path!r} cannot be read",
            str(error),
            "see that you may read it: sudo cat FILE | legacy-cuda doctor --log -",
        ) from error


# ------------------------------------------------------------------------------------- JSON


def document(facts: Facts, diagnosis: Diagnosis, scan: Scan | None) -> dict[str, Any]:
    """The answer as JSON; its schema is ``catalog/schema/doctor-report.schema.json``."""
    causes = diagnosis.causes
    return {
        "verdict": diagnosis.verdict,
        "system": plain(facts.system),
        "findings": [
            _finding(item, None if item is cause.finding else cause.finding.rule.id)
            for cause in causes
            for item in (cause.finding, *cause.follows)
        ],
        "fine": list(diagnosis.fine),
        "now": list(diagnosis.now),
        "not_judged": list(diagnosis.not_judged),
        "failures": plain(diagnosis.failures),
        "log": None if scan is None else {"lines": scan.lines},
        "facts": plain(facts),
    }


def _finding(finding: Finding, because_of: str | None) -> dict[str, Any]:
    return {
        "id": finding.rule.id,
        "title": finding.rule.title,
        "severity": finding.severity,
        "confidence": finding.confidence,
        "because_of": because_of,
        "evidence": [
            {
                "text": _around(item.text, finding.rule),
                "source": item.source,
                "gpu": item.gpu and item.gpu.name,
            }
            for item in finding.evidence
        ],
        "evidence_left_out": finding.left_out,
        "cause": finding.cause,
        "fix": list(finding.fix),
        "example": finding.example,
        "links": list(finding.rule.links),
        "status": finding.rule.status,
        "source": finding.rule.source,
    }


def plain(value: Any) -> Any:
    """Dataclasses, mappings, tuples and days as JSON has them."""
    import dataclasses
    from collections.abc import Mapping
    from datetime import date

    if isinstance(value, Gpu):
        return value.name
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value.isoformat() if isinstance(value, date) else value


# ----------------------------------------------------------------------------------- people


def _show(facts: Facts, diagnosis: Diagnosis, scan: Scan | None) -> None:
    if facts.system is not None and scan is None:
        where = ", in a container" if facts.system.container else ""
        where += ", in a virtual machine" if facts.virtual and facts.virtual.guest else ""
        kernel = facts.kernel.release.value if facts.kernel and facts.kernel.release else "?"
        print(output.wrapped("", f"{_line(facts.system.name)}{where}, Linux {_line(kernel)}", 0))
    for number, cause in enumerate(diagnosis.causes):
        if number or scan is None:
            print()
        _show_finding(cause.finding)
        for item in cause.follows:
            head = output.paint(f"{item.severity} {item.rule.id}", *_STYLES[item.severity])
            print(f"  then   {head}: {item.rule.title}")
            _show_evidence(item, 1)
    if diagnosis.fine:
        print()
        for number, text in enumerate(diagnosis.fine):
            label = f"  {output.paint('fine', 'green')}   " if number == 0 else " " * _INDENT
            print(label + output.wrapped("", _line(text), _INDENT).lstrip())
    for number, text in enumerate(diagnosis.now):
        print(output.wrapped("" if number else "  now", _line(text), _INDENT))
    for text in diagnosis.not_judged:
        print(output.wrapped("  not judged", f" {_line(text)}", 13))
    for failure in diagnosis.failures:
        print(output.wrapped("  not seen", f" {failure.probe}: {_line(failure.what)}", 11))
    if scan is None or diagnosis.causes:
        print()
    print(_summary(diagnosis, scan))


def _summary(diagnosis: Diagnosis, scan: Scan | None) -> str:
    counts = {
        severity: sum(item.finding.severity == severity for item in diagnosis.causes)
        for severity in ("error", "warning")
    }
    if not diagnosis.causes and scan is not None:
        lines = f"{scan.lines} line{'' if scan.lines == 1 else 's'}"
        return f"nothing known in {lines}; without --log the machine is looked at"
    words = [
        f"{count} {severity}{'s' if count > 1 else ''}"
        for severity, count in counts.items()
        if count
    ]
    judged = bool(diagnosis.fine or diagnosis.now) or scan is not None
    text = ", ".join(words) or ("nothing wrong found" if judged else "nothing was judged")
    style = {"errors": "red", "warnings": "yellow", "fine": "green"}[diagnosis.verdict]
    style = style if words or judged else "yellow"
    more = "; legacy-cuda doctor explain RULE says more" if diagnosis.causes else ""
    return output.paint(text, style, "bold") + more


def _show_finding(finding: Finding) -> None:
    head = output.paint(f"{finding.severity} {finding.rule.id}", *_STYLES[finding.severity])
    sure = "" if finding.confidence == "certain" else f" [{finding.confidence}]"
    print(f"{head}: {finding.rule.title}{sure}")
    _show_evidence(finding, 3)
    print(output.wrapped("  cause", finding.cause, _INDENT))
    _show_lines("  fix", finding.fix)
    if finding.example is not None:
        text = f"{finding.example} is an example; --gpu GPU names your card"
        print(output.wrapped("", output.paint(text, "dim"), _INDENT))


def _show_evidence(finding: Finding, most: int) -> None:
    for number, item in enumerate(finding.evidence[:most]):
        label = "  seen" if number == 0 else ""
        print(output.wrapped(label, _line(_around(item.text, finding.rule)), _INDENT))
        print(output.wrapped("", output.paint(_line(item.source), "dim"), _INDENT))
    left = finding.left_out + max(0, len(finding.evidence) - most)
    if left:
        print(" " * _INDENT + output.paint(f"and {left} more", "dim"))


def _around(text: str, rule: Rule) -> str:
    """Of a long line the part that shows the rule. Cut last of all: in a line that was cut before,
    a secret would no longer be recognised as one."""
    at = next((at for item in rule.patterns if (at := text.find(item.text)) >= 0), 0)
    part = text[at - _SHOWN // 4 :] if len(text) > _SHOWN and at >= _SHOWN // 2 else text
    return part if not rule.patterns or len(part) <= _SHOWN else f"{part[: _SHOWN - 4]} ..."


def _show_lines(label: str, lines: tuple[str, ...]) -> None:
    """Lines of a fix: commands and settings whole, so that they can be copied; the rest wrapped."""
    for line in lines:
        if line.startswith("$ ") or " = " in line:
            print(f"{label:<{_INDENT}}{output.paint(line, 'bold')}")
        else:
            print(output.wrapped(label, line, _INDENT))
        label = ""


def _line(text: str) -> str:
    """A text from the machine without control characters: a terminal obeys some."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


# ---------------------------------------------------------------------------------- explain


def _explain(words: list[str], as_json: bool) -> int:
    from legacy_cuda import catalog
    from legacy_cuda.catalog.doctor import find_rule, rules
    from legacy_cuda.doctor.rules import FACT_RULES, fill, windows

    if words[0] != "explain":
        raise UserError(
            f"doctor cannot {words[0]!r}",
            next_step="legacy-cuda doctor, or legacy-cuda doctor explain RULE",
        )
    try:
        chosen = [find_rule(word) for word in words[1:]] or list(rules())
    except catalog.CatalogError as problem:
        raise output.unknown(problem, "legacy-cuda doctor explain lists all of them") from problem
    if as_json:
        output.document("doctor-rules", {"rules": [_rule(rule) for rule in chosen]})
        return 0
    if len(words) == 1:
        rows = [("rule", "severity", "what")]
        rows += [(rule.id, rule.severity, rule.title) for rule in chosen]
        print(output.table(rows, lambda cell: _STYLES.get(cell, ())))
        return 0
    for rule in chosen:
        names = windows(catalog.find_gpu(rule.card))
        head = output.paint(f"{rule.severity} {rule.id}", *_STYLES[rule.severity])
        print(f"{head}: {rule.title} [{rule.confidence}]")
        print(output.wrapped("  cause", fill(rule.cause, names), _INDENT))
        seen = tuple(pattern.text for pattern in rule.patterns)
        if rule.id in FACT_RULES:
            seen = ("the machine itself, without a log", *seen)
        for number, text in enumerate(seen):
            print(output.wrapped("" if number else "  seen", text, _INDENT))
        for system, lines in rule.fix.items():
            print(f"  fix    ({'elsewhere' if system == 'any' and len(rule.fix) > 1 else system})")
            kepler = windows(catalog.find_gpu("k80")) if system == "kepler" else names
            _show_lines("", tuple(fill(line, kepler) for line in lines))
        if rule.follows:
            print(output.wrapped("  may be", f"because of {', '.join(rule.follows)}", _INDENT))
        print(output.wrapped("  known", f"{rule.status}: {rule.source}", _INDENT))
        if rule.links:
            print(output.wrapped("  see", "; ".join(rule.links), _INDENT))
        if any(fill(text, names) != text for text in (rule.cause, *sum(rule.fix.values(), ()))):
            print(output.wrapped("  shown", f"for {names['gpu']} as an example", _INDENT))
    return 0


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "title": rule.title,
        "severity": rule.severity,
        "confidence": rule.confidence,
        "seen_in": rule.seen_in,
        "texts": [pattern.text for pattern in rule.patterns],
        "cause": rule.cause,
        "fix": {system: list(lines) for system, lines in rule.fix.items()},
        "follows": list(rule.follows),
        "links": list(rule.links),
        "status": rule.status,
        "source": rule.source,
    }
