"""``legacy-cuda resolve``: GPUs and an engine to a stack, or to a refusal."""

from __future__ import annotations

import argparse
from typing import Any

from legacy_cuda import hardware
from legacy_cuda.catalog import Gpu, dotted
from legacy_cuda.cli import output
from legacy_cuda.resolve import USUAL_ENGINE, Refusal, Stack, resolve


def add(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "resolve",
        help="which stack for these GPUs in one machine, and why",
        description="Which stack serves these GPUs in one machine, and why; or why none does "
        "and what works instead. Downloads nothing.",
        epilog="examples:\n"
        "  legacy-cuda resolve p40\n"
        "  legacy-cuda resolve p4000 gtx1060-6gb --json\n"
        "  legacy-cuda resolve 2xk80 p40\n"
        "  legacy-cuda resolve 10de:1b38 --engine vllm\n"
        "  legacy-cuda resolve              (the GPUs of this machine)",
        formatter_class=output.HelpFormatter,
    )
    add_selection(parser)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.set_defaults(run=run)


def add_selection(parser: argparse.ArgumentParser) -> None:
    """The arguments that name GPUs and engine."""
    parser.add_argument(
        "gpu",
        nargs="*",
        help="name, alias, product name or PCI id; 2xk80 is two of them; none: this machine's",
    )
    parser.add_argument(
        "--engine", default=USUAL_ENGINE, help="what is to run (default: %(default)s)"
    )


def chosen_gpus(names: list[str]) -> list[Gpu]:
    """The GPUs named, or those of this machine.

    Raises:
        UserError: one is unknown, or none was named and none found.
    """
    return output.read_gpus(names) if names else hardware.detect()


def select(arguments: argparse.Namespace) -> Stack | Refusal:
    """Resolve what the arguments name."""
    return resolve(chosen_gpus(arguments.gpu), output.read_engine(arguments.engine))


def document(answer: Stack | Refusal) -> dict[str, Any]:
    """The answer as JSON."""
    common = {
        "gpus": [gpu.name for gpu in answer.gpus],
        "engine": answer.engine.name,
        "offered": isinstance(answer, Stack),
    }
    if isinstance(answer, Refusal):
        return {
            **common,
            "refusal": {
                "rule": answer.rule,
                "because": list(answer.because),
                "instead": list(answer.instead),
                "split": [list(machine) for machine in answer.split],
            },
        }
    branch = answer.driver.branch
    return {
        **common,
        "stack": answer.facts.name,
        "lock": answer.facts.lock,
        "driver": {
            "branch": branch.branch,
            "latest": branch.latest,
            "module": answer.driver.flavour,
        },
        "cuda": dotted(answer.facts.cuda),
        "toolkit": {
            "version": dotted(answer.toolkit.version),
            "gcc_max": answer.toolkit.gcc_max,
            "glibc_below": answer.toolkit.glibc_below,
        },
        "pythons": list(answer.facts.pythons),
        "patched": list(answer.facts.patched),
        "compiled": list(answer.facts.compiled),
        "reasons": [
            {"subject": item.subject, "choice": item.choice, "because": item.because}
            for item in answer.reasons
        ],
        "notes": list(answer.notes),
    }


def show(answer: Stack | Refusal) -> None:
    """The answer for people."""
    cards = ", ".join(f"{gpu.product} ({gpu.capability})" for gpu in answer.gpus)
    print(output.wrapped("", f"{cards}, engine {answer.engine.name}", 0))
    if isinstance(answer, Refusal):
        print(output.paint("refused", "red", "bold") + f" [{answer.rule}]")
        for text in answer.because:
            print(output.wrapped("  because", text, 12))
        for text in answer.instead:
            print(output.wrapped("  instead", text, 12))
        return
    head = output.paint(f"stack {answer.facts.name}", "green", "bold")
    print(output.wrapped("", f"{head}: {answer.facts.title}", 0))
    for item in answer.reasons:
        print(f"  {item.subject:<19}{output.paint(item.choice, 'bold')}")
        print(output.wrapped("", output.paint(item.because, "dim"), 21))
    for text in answer.notes:
        print(output.wrapped("  note", text, 21))


def run(arguments: argparse.Namespace) -> int:
    """Resolve and print; 1 for a refusal."""
    answer = select(arguments)
    if arguments.json:
        output.document("resolve", document(answer))
    else:
        show(answer)
    return 0 if isinstance(answer, Stack) else 1
