"""``legacy-cuda verify``: known kernels on each GPU, their numbers and their rates."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from legacy_cuda.cli import output
from legacy_cuda.errors import SurroundingsError, UserError

if TYPE_CHECKING:
    from legacy_cuda.capability import Capability
    from legacy_cuda.catalog import Gpu
    from legacy_cuda.nvml import Device, Snapshot
    from legacy_cuda.verify.code import Code, Finder
    from legacy_cuda.verify.judge import Live
    from legacy_cuda.verify.run import Options, Survey

_STYLES = {
    "healthy": ("green",), "right": ("green",), "passed": ("green",), "degraded": ("yellow",),
    "incomplete": ("yellow",), "failed": ("red",), "error": ("red",), "hung": ("red",),
}  # fmt: skip
_GOOD = ("healthy", "right")
_STARTED = ("start", "passed")


def add(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "verify",
        help="run known kernels on each GPU: right numbers, right rates?",
        description="Run known kernels on each GPU of this machine: arithmetic in fp32, fp64, fp16 "
        "and int8, atomics, shared memory, caches, all free memory; then the rates of memory, "
        "arithmetic and links, compared with the catalog's figures for the card. Needs the NVIDIA "
        "driver, and no compiler: without the package legacy-cuda-probe, NVRTC compiles the "
        "kernels, found here or downloaded (20 MiB).",
        epilog="examples:\n"
        "  legacy-cuda verify\n"
        "  legacy-cuda verify --device 1 --load 300        heat shows after minutes\n"
        "  legacy-cuda verify --json --report verify.html\n"
        "  legacy-cuda verify --replay 6.1                 a P40's code on a newer GPU\n\n"
        "exit codes: 0 right and as fast as the card should be, or not comparable; 1 wrong, "
        "slower,\nor not all could be tested; 2 bad input; 3 no GPU, no driver or no probe",
        formatter_class=output.HelpFormatter,
    )
    parser.add_argument(
        "--device",
        type=int,
        action="append",
        metavar="N",
        help="only this GPU, counted from 0 as nvidia-smi does; may be given again",
    )
    parser.add_argument(
        "--replay", metavar="X.Y", help="run the code for this older capability on a newer GPU"
    )
    parser.add_argument(
        "--load",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="how long to keep up arithmetic (default: 5)",
    )
    parser.add_argument(
        "--memory",
        type=int,
        default=0,
        metavar="MIB",
        help="how much memory to test at most (default: all that is free)",
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="end a GPU's run when a step takes longer (default: 120)",
    )
    parser.add_argument(
        "--probe", type=Path, metavar="PATH", help="a wheel of legacy-cuda-probe, or its folder"
    )
    parser.add_argument(
        "--nvrtc", action="store_true", help="compile the kernels here even if there is a probe"
    )
    parser.add_argument("--offline", action="store_true", help="download nothing")
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="write a page with the rooflines (HTML)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Verify the GPUs and print what was found.

    Raises:
        UserError: an argument is out of range, or names a GPU that is not there.
        SurroundingsError: there is no GPU, no driver, or no code to run.
    """
    from legacy_cuda.replay import report as files
    from legacy_cuda.verify import page
    from legacy_cuda.verify import run as runner
    from legacy_cuda.verify.code import Finder

    _check(arguments)
    if arguments.report is not None:
        files.check_target(arguments.report)
    replay = _replay(arguments.replay)
    survey = runner.survey()
    if survey.problem or not survey.devices:
        raise SurroundingsError(
            "there is no NVIDIA GPU to verify",
            survey.problem or "the driver shows none",
            "install the driver of the branch that `legacy-cuda resolve` names for the card; "
            "in a container, let it see the GPU",
        )
    chosen = _chosen(arguments.device, survey)
    options = runner.Options(
        limit=arguments.limit, load=arguments.load, memory_limit=arguments.memory << 20
    )
    with output.progress() as tell:
        finder = Finder(
            arguments.probe,
            download=not arguments.offline,
            use_compiled=not arguments.nvrtc,
            progress=lambda done, total: tell("NVRTC", done, total),
        )
        codes = _codes(finder, survey, chosen, replay)
    document = _verify(survey, chosen, codes, replay, options)
    if arguments.json:
        output.document("verify", document)
    else:
        _print(document)
    fine = all(item["verdict"]["state"] in _GOOD for item in document["gpus"])
    fine = fine and all(item["outcome"] in ("passed", "not run") for item in document["peers"])
    if arguments.report is not None:
        try:
            files.put(page.html(document), arguments.report)
        except OSError as error:
            problem = SurroundingsError("the page could not be written", str(error))
            output.error(problem)  # not as JSON: the results are the document
            return problem.exit_code if fine else 1
    return 0 if fine else 1


def _check(arguments: argparse.Namespace) -> None:
    for name, least in (("load", 0), ("limit", 1), ("memory", 0)):
        value = getattr(arguments, name)
        if not least <= value <= 1e7:
            raise UserError(f"--{name} wants a number of {least} or more, not {value}")
    if arguments.nvrtc and arguments.probe is not None:
        raise UserError("--nvrtc and --probe exclude each other", next_step="leave one out")


def _replay(text: str | None) -> Capability | None:
    """The capability to replay: that of the option, or of ``legacy-cuda replay`` around this.

    Raises:
        UserError: it is none.
    """
    import os

    from legacy_cuda import catalog
    from legacy_cuda.capability import Capability
    from legacy_cuda.replay.inside.settings import PREFIX

    text = text or os.environ.get(PREFIX)
    if text is None:
        return None
    try:
        capability = Capability.parse(text)
    except ValueError as error:
        raise UserError(str(error), next_step="for example: --replay 6.1") from error
    if capability not in catalog.capabilities():
        raise UserError(f"no GPU has capability {capability}", next_step="name another one")
    return capability


def _chosen(numbers: list[int] | None, survey: Survey) -> list[dict[str, Any]]:
    there = {device["index"]: device for device in survey.devices}
    unknown = [number for number in numbers or [] if number not in there]
    if unknown:
        names = ", ".join(f"{index}: {device['name']}" for index, device in there.items())
        raise UserError(f"there is no GPU {unknown[0]}", f"there are {names}", "name one of these")
    return [there[number] for number in dict.fromkeys(numbers or there)]


def _codes(
    finder: Finder,
    survey: Survey,
    chosen: list[dict[str, Any]],
    replay: Capability | None,
) -> list[Code]:
    """The code for each GPU; all are found before anything runs."""
    from legacy_cuda.capability import Capability
    from legacy_cuda.verify.code import Wanted

    codes = []
    for device in chosen:
        capability = Capability.parse(device["capability"])
        if replay is not None and replay >= capability:
            raise UserError(
                f"{replay} cannot be replayed on {device['name']}",
                f"it has capability {capability}; only older ones can be replayed on it",
                "leave --replay out, or choose a newer GPU with --device",
            )
        codes.append(finder.find(Wanted(capability, survey.cuda, replay)))
    return codes


def _verify(
    survey: Survey,
    chosen: list[dict[str, Any]],
    codes: list[Code],
    replay: Capability | None,
    options: Options,
) -> dict[str, Any]:
    import itertools
    import time
    from functools import partial

    from legacy_cuda import __version__, catalog, hardware, nvml
    from legacy_cuda.capability import Capability
    from legacy_cuda.catalog import dotted
    from legacy_cuda.verify import run as runner

    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    capabilities = [replay or Capability.parse(device["capability"]) for device in chosen]
    total = len(chosen) * (1 + len(options.steps))
    begun = itertools.count()
    done = []
    gpus = []
    peers: list[dict[str, Any]] = []
    before = nvml.snapshot()
    with output.steps() as bar:

        def tell(where: str, step: str) -> None:
            bar(f"{where} {step}", min(next(begun), total), total)

        for device, code, capability in zip(chosen, codes, capabilities, strict=True):
            told = partial(tell, f"GPU {device['index']}:")
            steps = runner.gpu(device, code, capability, options, told)
            done.append(steps)
        after = nvml.snapshot()  # while they are warm
        for device, code, steps in zip(chosen, codes, done, strict=True):
            pci_id = hardware.pci_id(device["bus"], hardware.SYSFS)
            card = catalog.identify(pci_id, device["memory"], device["name"])
            gpus.append(_row(device, code, steps, card, replay, (before, after)))
        if len(chosen) > 1 and all(item["verdict"]["state"] != "failed" for item in gpus):
            pairs = list(zip(codes, capabilities, strict=True))
            steps = runner.peers(chosen, pairs, options, partial(tell, "GPU"))
            peers = [step for step in steps if (step["name"], step["outcome"]) != _STARTED]
    return {
        "tool": __version__,
        "created": created,
        "driver_cuda": dotted(survey.cuda),
        "gpus": gpus,
        "peers": peers,
    }


def _row(
    device: dict[str, Any],
    code: Code,
    steps: list[dict[str, Any]],
    card: Gpu | None,
    replay: Capability | None,
    snapshots: tuple[Snapshot, Snapshot],
) -> dict[str, Any]:
    from dataclasses import asdict

    from legacy_cuda.verify import judge

    live = _live(device["bus"], *snapshots)
    known = live if isinstance(live, judge.Live) else None
    verdict = judge.judge(device, steps, card, replayed=replay is not None, live=known)
    return {
        **device,
        "card": card.name if card else None,
        "label": judge.label(device, steps, replay),
        "replayed_at": str(replay) if replay else None,
        "code": {"target": str(code.target), "origin": code.origin, "sha256": code.sha256},
        "steps": steps,
        "nvml": asdict(known) if known else None,
        "nvml_missing": live if isinstance(live, str) else None,
        "nominal": judge.nominal_rates(device, card) if replay is None else {},
        "verdict": {
            "state": verdict.state,
            "findings": [{"kind": item.kind, "text": item.text} for item in verdict.findings],
            "rates": [
                {
                    "name": rate.name,
                    "measured": rate.measured,
                    "nominal": rate.nominal,
                    "share": rate.share,
                    "unit": rate.unit,
                }
                for rate in verdict.rates
            ],
        },
    }


def _live(bus: str, before: Snapshot, after: Snapshot) -> Live | str:
    """What NVML says of the GPU at that address after the run, or why it says nothing.

    That the clock was lowered for heat is told by a counter of seconds, before and after.
    """
    from legacy_cuda.verify.judge import Live

    if after.error is not None:
        return str(after.error)
    found = _at(bus, after)
    if found is None:
        return f"it lists no GPU at {bus}"
    if found.failure is not None:
        return str(found.failure)
    earlier = _at(bus, before)
    hot = None
    if earlier is not None and None not in (earlier.thermal_violation_s, found.thermal_violation_s):
        hot = (found.thermal_violation_s or 0.0) - (earlier.thermal_violation_s or 0.0)
    return Live(
        hot_s=hot,
        link_generation=found.pcie_generation,
        link_generation_most=found.pcie_generation_max,
        link_width=found.pcie_width,
        link_width_most=found.pcie_width_max,
        ecc_corrected=found.ecc_corrected_volatile,
        ecc_uncorrected=found.ecc_uncorrected_volatile,
        temperature=found.temperature_c,
    )


def _at(bus: str, snapshot: Snapshot) -> Device | None:
    return next((found for found in snapshot.devices if found.pci_address == bus), None)


def _print(document: dict[str, Any]) -> None:
    from legacy_cuda.verify import page, roofline

    for gpu in document["gpus"]:
        verdict = gpu["verdict"]
        state = output.paint(verdict["state"], "bold", *_STYLES.get(verdict["state"], ()))
        title = output.paint(f"GPU {gpu['index']}: {gpu['name']}", "bold")
        print(f"{title}, capability {gpu['capability']}: {state}")
        print(f"  {gpu['label']}; {gpu['code']['target']} from {gpu['code']['origin']}")
        for finding in verdict["findings"]:
            print(output.wrapped(f"  {finding['kind']}", finding["text"], 20))
        if gpu["nvml_missing"]:
            print(f"  temperature and counts of memory errors: {gpu['nvml_missing']}")
        print()
        rows = [["  step", "outcome", ""]]
        rows += [[f"  {s['name']}", s["outcome"], page.detail(s, gpu)] for s in gpu["steps"][1:]]
        print(output.table(rows, lambda cell: _STYLES.get(cell.strip(), ())))
        if verdict["rates"]:
            print()
            rows = [["  rate", "measured", "nominal", "share"]]
            rows += [
                [
                    f"  {rate['name']}",
                    f"{rate['measured']:.2f} {rate['unit']}",
                    f"{rate['nominal']:.2f}" if rate["nominal"] else "not recorded",
                    f"{100 * rate['share']:.0f} %" if rate["share"] else "",
                ]
                for rate in verdict["rates"]
            ]
            print(output.table(rows, lambda cell: ()))
        drawn = roofline.read(gpu["steps"], gpu["nominal"])
        if drawn is not None:
            print("\n  10^12 operations/s")
            print("\n".join(roofline.text(drawn, width=min(72, output.width() - 20))))
        print()
    for step in document["peers"]:
        rate = f"{step['facts']['gb_s']:.1f} GB/s" if "gb_s" in step["facts"] else ""
        way = {True: "direct", False: "through the machine's memory"}.get(
            step["facts"].get("direct"), step.get("why", "")
        )
        print(f"GPU {step['name']}: {step['outcome']}  {rate}  {way}".rstrip())
