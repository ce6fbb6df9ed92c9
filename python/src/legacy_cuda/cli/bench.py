"""``legacy-cuda bench``: how fast a server of the OpenAI API is, and what changed it."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from legacy_cuda import __version__
from legacy_cuda.cli import output
from legacy_cuda.errors import SurroundingsError, UserError

if TYPE_CHECKING:
    from legacy_cuda.bench.client import Endpoint
    from legacy_cuda.bench.compare import Expected, Row
    from legacy_cuda.bench.figures import Summary
    from legacy_cuda.bench.runfile import Run

_LARGEST_CONCURRENCY = 512
_STYLE = {
    "better": ("green",),
    "worse": ("red",),
    "better than expected": ("green",),
    "worse than expected": ("red",),
    "not known": ("yellow",),
    "not measured": ("yellow",),
}


def add(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "bench",
        help="measure a server that speaks the OpenAI API, compare runs",
        description="Measure prompt and generation speed, time to first token and latencies of any "
        "server that speaks the OpenAI API, and compare what was measured.",
        epilog="examples:\n"
        "  legacy-cuda bench run http://127.0.0.1:8080\n"
        "  legacy-cuda bench run http://127.0.0.1:8080 --prompt 512,2048 --concurrency 1,2,4,8\n"
        "  legacy-cuda bench show bench-model.json\n"
        "  legacy-cuda bench compare before.json after.json\n\n"
        "each of them has --help with more",
        formatter_class=output.HelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_run(actions)
    _add_show(actions)
    _add_compare(actions)


def _add_run(actions: Any) -> None:
    parser = actions.add_parser(
        "run",
        help="measure a server",
        description="Send prompts of known lengths, stream the answers, and write every request to "
        "a file and a page beside it. The same command goes on with a run that was stopped. "
        "Tokens are counted by the server. No prompt is sent twice, unless asked for.",
        epilog="examples:\n"
        "  legacy-cuda bench run http://127.0.0.1:8080\n"
        "  legacy-cuda bench run http://127.0.0.1:8080 --prompt 128,512,2048 --concurrency 1,4\n"
        "  legacy-cuda bench run http://127.0.0.1:11434 --model hermes3 --time-limit 20\n\n"
        "exit code 1 if requests failed, 3 if the server is gone; what was measured is kept",
        formatter_class=output.HelpFormatter,
    )
    parser.add_argument("url", metavar="URL", help="the server; /v1 may be left out")
    parser.add_argument("--model", help="needed where the server has several")
    parser.add_argument(
        "--prompt",
        type=_numbers,
        default=[512],
        metavar="N,N",
        help="tokens of a prompt, with the chat template (default 512)",
    )
    parser.add_argument(
        "--generate", type=_number, default=128, metavar="N", help="tokens to answer (default 128)"
    )
    parser.add_argument(
        "--concurrency",
        type=_numbers,
        default=[1, 2, 4, 8],
        metavar="N,N",
        help="requests at once (default 1,2,4,8)",
    )
    parser.add_argument(
        "--repeat", type=_number, default=3, metavar="N", help="rounds of each point (default 3)"
    )
    parser.add_argument(
        "--requests",
        type=_number,
        default=2,
        metavar="N",
        help="in a round, in a row, for each at once (default 2)",
    )
    parser.add_argument(
        "--warmup",
        type=_number_or_none,
        default=1,
        metavar="N",
        help="rounds that are not measured (default 1)",
    )
    parser.add_argument(
        "--same-prompt", action="store_true", help="one prompt for all, so that prefix caches help"
    )
    parser.add_argument(
        "--api", choices=["chat", "completions"], default="chat", help="(default chat)"
    )
    parser.add_argument(
        "--no-ignore-eos",
        action="store_true",
        help="do not send ignore_eos, which some servers refuse",
    )
    parser.add_argument(
        "--extra", type=_object, default={}, metavar="JSON", help="fields to add to every request"
    )
    parser.add_argument(
        "--request-timeout",
        type=_seconds,
        default=900.0,
        metavar="S",
        help="for a whole answer (default 900)",
    )
    parser.add_argument(
        "--stall-timeout",
        type=_seconds,
        default=300.0,
        metavar="S",
        help="without a byte; the first token comes after the whole prompt (default 300)",
    )
    parser.add_argument(
        "--time-limit", type=_seconds, metavar="MIN", help="minutes, then the rest is left"
    )
    parser.add_argument("--key-env", metavar="NAME", help="variable that holds the server's key")
    parser.add_argument("--note", default="", help="kept in the file")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="of the run (default bench-MODEL.json here)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.set_defaults(run=run)


def _add_show(actions: Any) -> None:
    parser = actions.add_parser(
        "show",
        help="print a run again",
        description="Print the figures of a run, and write its page anew.",
        epilog="examples:\n  legacy-cuda bench show bench-model.json --json",
        formatter_class=output.HelpFormatter,
    )
    parser.add_argument("file", type=Path, metavar="RUN")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.set_defaults(run=show)


def _add_compare(actions: Any) -> None:
    parser = actions.add_parser(
        "compare",
        help="two runs, or a run and what was expected",
        description="Compare two runs point by point: ratios of the second to the first, with "
        "95 % intervals from their rounds. A difference within the noise is none. Instead of the "
        "second run it takes a file of expectations.",
        epilog="examples:\n"
        "  legacy-cuda bench compare before.json after.json\n"
        "  legacy-cuda bench compare before.json after.json --least 5 --json\n\n"
        "exit code 1 if anything is worse",
        formatter_class=output.HelpFormatter,
    )
    parser.add_argument("first", type=Path, metavar="A")
    parser.add_argument("second", type=Path, metavar="B")
    parser.add_argument(
        "--least",
        type=_percent,
        default=2.0,
        metavar="PERCENT",
        help="smaller differences are none (default 2)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.set_defaults(run=compare)


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,7}", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 9999999")
    return int(text)


def _number_or_none(text: str) -> int:
    return 0 if text == "0" else _number(text)


def _numbers(text: str) -> list[int]:
    return sorted({_number(part) for part in text.split(",")})


def _seconds(text: str) -> float:
    return _between(text, 0.001, 1e7)


def _percent(text: str) -> float:
    return _between(text, 0, 100)


def _between(text: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from {low:g} to {high:g}")
    return value


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Measure; 1 if requests failed, 3 if the server went away."""
    from legacy_cuda.bench import client, drive, machine, runfile, server

    if max(arguments.concurrency) > _LARGEST_CONCURRENCY:
        raise UserError(
            f"{max(arguments.concurrency)} requests at once are too many for one program",
            f"the most is {_LARGEST_CONCURRENCY}",
        )
    begin = time.monotonic()
    place = client.endpoint(arguments.url, _key(arguments.key_env))
    said = server.ask(place, arguments.model)
    settings = _settings(arguments, place, said.model)
    facts = machine.facts(place.local)
    path = arguments.output or Path(f"bench-{_slug(said.model)}.json")
    if path.suffix == ".html":
        raise UserError(f"{path} is the name of the page", "", f"try {path.with_suffix('.json')}")
    until = begin + 60 * arguments.time_limit if arguments.time_limit else None
    limits = drive.Limits(arguments.request_timeout, arguments.stall_timeout, until)
    with runfile.exclusive(path):
        if path.exists():
            going = runfile.read(path)
            if changed := runfile.differences(going, settings, said.record(), facts):
                raise UserError(
                    f"{path} holds another run",
                    "\n".join(changed),
                    "give the same settings to go on with it, or name a new file with --output",
                )
            settings["repeat"] = max(settings["repeat"], going.settings["repeat"])
            going.settings = settings
        else:
            going = runfile.Run(__version__, drive.now(), settings, said.record(), facts, {})
            _skip(going, said.context)
            found = drive.find_length(place, settings, limits)
            going.prompts = drive.first_prompts(found, going.points, settings["api"])
            runfile.write(path, going)
        how = "complete"
        try:
            if going.missing():
                with output.steps() as tell:
                    session = drive.Session(
                        going, place, limits, lambda: runfile.write(path, going), tell
                    )
                    how = session.go()
        except KeyboardInterrupt as stop:
            _report(going, path, arguments.json)
            raise KeyboardInterrupt(
                f"{len(going.missing())} rounds are left; the same command goes on"
            ) from stop
        summaries = _report(going, path, arguments.json)
    if how == "unreachable":
        output.error(server.unreachable(place, "it did before; what was measured is kept"))
        return SurroundingsError.exit_code
    return 1 if how == "failures" or any(summary.failed for summary in summaries) else 0


def _key(name: str | None) -> str:
    if name is None:
        return ""
    if not os.environ.get(name):
        raise UserError(f"the variable {name} of the environment is not set")
    return os.environ[name]


def _slug(model: str) -> str:
    name = model.rpartition("/")[2].removesuffix(".gguf")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"


def _settings(arguments: argparse.Namespace, place: Endpoint, model: str) -> dict[str, Any]:
    return {
        "url": place.url,
        "model": model,
        "api": arguments.api,
        "prompt": arguments.prompt,
        "generate": arguments.generate,
        "concurrency": arguments.concurrency,
        "repeat": arguments.repeat,
        "requests": arguments.requests,
        "warmup": arguments.warmup,
        "same_prompt": arguments.same_prompt,
        "ignore_eos": not arguments.no_ignore_eos,
        "extra": arguments.extra,
        "request_timeout_s": arguments.request_timeout,
        "stall_timeout_s": arguments.stall_timeout,
        "note": arguments.note,
    }


def _skip(going: Run, context: int | None) -> None:
    """Leave out what does not fit into the context that the server says it has."""
    for point in going.points:
        if context and point.prompt + point.generate > context:
            going.skipped[point] = f"the server has room for {context} tokens"
    if not going.points:
        raise UserError(
            "nothing of this fits into the server's context",
            f"it has room for {context} tokens of prompt and answer",
            "ask for shorter prompts or answers, or start it with a larger context",
        )


def show(arguments: argparse.Namespace) -> int:
    """Print a run and write its page."""
    from legacy_cuda.bench import runfile

    _report(runfile.read(arguments.file), arguments.file, arguments.json)
    return 0


def _report(going: Run, path: Path, as_json: bool) -> list[Summary]:
    """Write the page and print the figures."""
    from legacy_cuda.bench import advice, figures, page, runfile

    summaries = figures.summarise(going.repeats)
    suggestions = advice.suggestions(summaries, going.server)
    warnings = advice.warnings(summaries, going.prompts)
    picture = path.with_suffix(".html")
    runfile.put(picture, page.html(going))
    if as_json:
        output.document(
            "bench",
            {
                "file": str(path.absolute()),
                "page": str(picture.absolute()),
                "complete": not going.missing(),
                "rounds_left": len(going.missing()),
                "settings": going.settings,
                "server": going.server,
                "machine": going.machine,
                "prompts_counted_by": going.prompts["counted_by"],
                "points": [figures.record(summary) for summary in summaries],
                "skipped": [
                    {**point._asdict(), "why": why} for point, why in going.skipped.items()
                ],
                "suggestions": suggestions,
                "warnings": warnings,
            },
        )
        return summaries
    server = going.server
    engine = " ".join(str(server[name]) for name in ("engine", "version") if server[name])
    print(f"{output.paint(server['model'], 'bold')}: {engine or 'engine not known'}")
    if summaries:
        print(output.table([page.HEAD, *map(page.row, summaries)], lambda cell: ()))
    for point, why in going.skipped.items():
        print(output.wrapped("skipped", f"{point}: {why}", 10))
    for text in warnings:
        print(output.wrapped(output.paint("mind", "yellow") + "      ", text, 10))
    for text in suggestions:
        print(output.wrapped(output.paint("suggests", "green") + "  ", text, 10))
    if left := len(going.missing()):
        print(f"left      {left} rounds")
    print(f"run       {output.short(path)}")
    print(f"page      {output.short(picture)}")
    return summaries


def compare(arguments: argparse.Namespace) -> int:
    """Compare; 1 if anything is worse."""
    from legacy_cuda.bench import compare as judged
    from legacy_cuda.bench import figures, runfile

    one = runfile.read(arguments.first)
    first = figures.summarise(one.repeats)
    other = runfile.load(arguments.second)
    if other.get("schema") == judged.EXPECTATION:
        try:
            expected = judged.meets(first, other)
        except ValueError as error:
            raise UserError(f"{arguments.second} is no file of expectations", str(error)) from error
        return _show_expected(expected, arguments.json)
    two = runfile.read(arguments.second)
    second = figures.summarise(two.repeats)
    rows = judged.compare(first, second, arguments.least / 100)
    if not rows:
        raise UserError(
            "the runs have no point in common",
            f"the first has {_named(first)}; the second {_named(second)}",
            "measure them with the same --prompt, --generate and --concurrency",
        )
    changed = runfile.differences(one, two.settings, two.server, two.machine)
    _show_rows(rows, changed, arguments)
    return 1 if any(row.verdict == "worse" for row in rows) else 0


def _named(summaries: Sequence[Summary]) -> str:
    return ", ".join(str(summary.point) for summary in summaries) or "none"


def _show_rows(rows: Sequence[Row], changed: Sequence[str], arguments: argparse.Namespace) -> None:
    from legacy_cuda.bench.figures import CONFIDENCE, round_

    known = [row for row in rows if row.low is not None]
    chance = len(known) * (1 - CONFIDENCE)
    if arguments.json:
        output.document(
            "bench-compare",
            {
                "first": str(arguments.first.absolute()),
                "second": str(arguments.second.absolute()),
                "least_percent": arguments.least,
                "differences": list(changed),
                "rows": [row.record() for row in rows],
                "outside_by_chance": round(chance, 2),
            },
        )
        return
    table = [["point", "figure", "A", "B", "B/A", "95 %", ""]]
    for row in rows:
        span = f"{row.low:.3f} to {row.high:.3f}" if row.low is not None else "one round only"
        table.append(
            [
                str(row.point),
                row.metric,
                round_(row.first),
                round_(row.second),
                f"{row.ratio:.3f}",
                span,
                row.verdict,
            ]
        )
    print(output.table(table, lambda cell: _STYLE.get(cell, ())))
    for text in changed:
        print(output.wrapped("differs", text, 9))
    if known:
        print(f"of {len(known)} equal figures about {chance:.1f} would lie outside by chance")


def _show_expected(rows: Sequence[Expected], as_json: bool) -> int:
    from legacy_cuda.bench.figures import round_

    if as_json:
        output.document("bench-expected", {"rows": [row.record() for row in rows]})
    else:
        table = [["point", "figure", "expected", "measured", ""]]
        for row in rows:
            span = f"{round_(row.low)} to {round_(row.high)}"
            table.append([str(row.point), row.metric, span, round_(row.measured), row.verdict])
        print(output.table(table, lambda cell: _STYLE.get(cell, ())))
    return 1 if any(row.verdict == "worse than expected" for row in rows) else 0
