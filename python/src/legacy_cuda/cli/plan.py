"""``legacy-cuda plan``: which model fits which cards, how, and about how fast."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from legacy_cuda import sizes
from legacy_cuda.catalog import CatalogError, dotted
from legacy_cuda.cli import output
from legacy_cuda.errors import Refused, SurroundingsError, UserError

if TYPE_CHECKING:
    from rich.text import Text

    from legacy_cuda.catalog import Gpu
    from legacy_cuda.catalog.estimates import Overhead
    from legacy_cuda.catalog.models import Mix
    from legacy_cuda.planner.model import Model
    from legacy_cuda.planner.placement import Load, Settings
    from legacy_cuda.planner.plan import Device, Plan, Result

_MIB = 1 << 20
_CONTEXT = 4096  # tokens, unless something else is asked for
_positive = output.whole(1, 1 << 24)
_VERDICTS = {
    "fits": ("fits", "green"),
    "tight": ("fits, but only just", "yellow"),
    "not": ("does not fit", "red"),
}
# parts of a GPU's memory: attribute, what they are called, how they are drawn, colour
_PARTS = (
    ("weights", "weights", "█", "blue"),
    ("cache", "KV cache", "▓", "green"),
    ("state", "state", "▓", "green"),
    ("compute", "compute buffer", "▒", "yellow"),
    ("pool", "pool (estimate)", "░", "magenta"),
    ("overhead", "CUDA (estimate)", "░", "red"),
    ("display", "screen", "░", "white"),
)


def add(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "plan",
        help="does this model fit on these GPUs, with which context, how fast",
        description="What of a model lies on which GPU under llama.cpp, whether that fits, the "
        "largest context and the best quantisation that do, and about how fast it is. Reads "
        "headers only; downloads nothing.",
        epilog="examples:\n"
        "  legacy-cuda plan hermes-3-8b --gpu p4000,gtx1060-6gb --context 8192 --parallel 4\n"
        "  legacy-cuda plan deepseek-r1:32b --quantisation Q4_K_M --gpu p40\n"
        "  legacy-cuda plan model.gguf --gpu 2xp100 --kv-type q8_0 --html plan.html\n"
        "  legacy-cuda plan qwen3-8b --gpu k80 --no-ecc --json\n"
        "  legacy-cuda plan --models        (the shapes that are known by name)",
        formatter_class=output.HelpFormatter,
    )
    parser.add_argument(
        "model",
        nargs="?",
        help="a GGUF file (any part of a split one), a folder with config.json and safetensors, or "
        "the name of a known shape",
    )
    add_settings(parser)
    parser.add_argument(
        "--quantisation",
        "--quantization",
        metavar="MIX",
        help="of a known shape or a folder: Q4_K_M, Q8_0, ... (default: the best that fits)",
    )
    parser.add_argument(
        "--engine",
        choices=("llama-server", "ollama"),
        default="llama-server",
        help="whose way to count (default: %(default)s)",
    )
    parser.add_argument("--models", action="store_true", help="list the known shapes")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page as well")
    parser.set_defaults(run=run)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The arguments that say on what and how a model is to run."""
    parser.add_argument(
        "--gpu",
        action="append",
        metavar="GPU",
        help="name, alias, product name or PCI id, in the order of CUDA; 2xp40 is two of them; "
        "none: this machine's",
    )
    parser.add_argument(
        "--context",
        type=_positive,
        help="tokens that each conversation holds (default: 4096, or what the model was made for "
        "where that is less)",
    )
    parser.add_argument(
        "--parallel", type=_positive, default=1, help="conversations at a time (default: 1)"
    )
    parser.add_argument(
        "--kv-type",
        default="f16",
        help="format of the KV cache: f16, q8_0, q4_0, ..., or keys,values (default: f16)",
    )
    parser.add_argument(
        "--flash-attention",
        choices=("auto", "on", "off"),
        default="auto",
        help="as --flash-attn of llama-server (default: auto)",
    )
    parser.add_argument(
        "--layers",
        type=output.whole(0, 1 << 24),
        help="layers on the GPUs, the output counted as one; 0: the CPU computes everything",
    )
    parser.add_argument("--split", help="share of the layers of each GPU, as 3,1")
    parser.add_argument(
        "--batch", type=_positive, default=512, help="tokens computed at a time (default: 512)"
    )
    parser.add_argument("--unified", action="store_true", help="one KV cache for all conversations")
    parser.add_argument("--no-ecc", action="store_true", help="ECC is switched off")
    parser.add_argument(
        "--display",
        default="",
        metavar="MIB,...",
        help="MiB that a screen takes, for each card in turn, as 0,300",
    )


def run(arguments: argparse.Namespace) -> int:
    """Plan and print; 1 where it does not fit or nothing serves the cards."""
    if arguments.models:
        return _list_models(arguments.json)
    if arguments.model is None:
        raise UserError("no model was named", next_step="legacy-cuda plan --models lists shapes")
    from legacy_cuda.cli.resolve import chosen_gpus
    from legacy_cuda.planner import plan as planner

    cards = chosen_gpus(arguments.gpu or [])
    try:
        cuda = cuda_for(cards, arguments.engine)
    except Refused as problem:
        return _refused(problem, arguments)
    model, chosen = _model(arguments)
    settings, where = asked(arguments, model, cards, cuda)
    if not chosen:
        model = planner.best_mix(model, settings, where) or model
    try:
        plan = planner.make(model, settings, where)
    except ValueError as error:
        raise UserError("this cannot be counted", str(error)) from error
    if arguments.html:
        _write_html(arguments.html, plan, arguments.engine, cuda)
    if arguments.json:
        output.document("plan", document(plan, arguments.engine, cuda))
    else:
        show(plan, arguments.engine, cuda)
    return 0 if plan.result.fits else 1


def _write_html(path: Path, plan: Plan, engine: str, cuda: tuple[int, int]) -> None:
    from legacy_cuda.planner.page import html

    hidden = path.with_name(f".{path.name}.part")
    try:
        hidden.write_text(html(document(plan, engine, cuda)), encoding="utf-8")
        hidden.replace(path)
    except OSError as error:
        hidden.unlink(missing_ok=True)
        raise SurroundingsError(f"{path} could not be written", str(error)) from error


def _refused(problem: Refused, arguments: argparse.Namespace) -> int:
    if arguments.json:
        output.document(
            "plan",
            {
                "model": arguments.model,
                "engine": arguments.engine,
                "verdict": "refused",
                "because": problem.why,
                "instead": problem.next_step,
            },
        )
        return 1
    print(output.paint("refused", "red", "bold") + f": {problem.what}")
    for label, texts in (("  because", problem.why), ("  instead", problem.next_step)):
        for text in texts.splitlines():
            print(output.wrapped(label, text, 12))
    return 1


def cuda_for(cards: list[Gpu], engine: str) -> tuple[int, int]:
    """The CUDA that the engine runs with on these cards.

    Raises:
        Refused: it does not.
    """
    from legacy_cuda import catalog
    from legacy_cuda.resolve import Refusal, alternatives, resolve

    if engine == "ollama":
        for card in cards:
            rule = output.read_engine("ollama").rule(card.capability)
            if rule.verdict == "refused":
                instead = "\n".join(alternatives(rule, card))
                raise Refused(f"Ollama does not serve {card.product}", rule.reason, instead)
        return max(catalog.toolkits())[0], 0  # it brings its own; the estimate is one for all
    answer = resolve(cards, output.read_engine("llama-cpp"))
    if isinstance(answer, Refusal):
        raise Refused(
            "no stack of llama.cpp serves these cards together",
            "\n".join(answer.because),
            "\n".join(answer.instead),
        )
    return answer.facts.cuda


def _numbers(text: str, what: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise UserError(f"{what}: {text!r} is no list of numbers", next_step="as 3,1") from error
    if any(not 0 <= value < 1e9 for value in found):
        raise UserError(f"{what}: {text!r} has a number out of reason")
    return found


def devices(
    arguments: argparse.Namespace, cards: list[Gpu], overhead: Overhead
) -> tuple[Device, ...]:
    """The GPUs of cards, as --no-ecc and --display have them.

    Raises:
        UserError: --display is not what it should be.
    """
    from legacy_cuda.planner import plan as planner

    display = tuple(int(value) for value in _numbers(arguments.display, "--display"))
    if len(display) > len(cards):
        raise UserError(
            f"--display has {len(display)} figures for {len(cards)} cards",
            next_step="one for each card, the first for the card that was named first",
        )
    for card, shown in zip(cards, display, strict=False):
        if shown > card.memory_mib:
            raise UserError(
                f"--display: a screen cannot take {shown} MiB of {card.product}",
                f"it has {card.memory_mib} MiB",
                "nvidia-smi says what is taken",
            )
    return planner.devices(cards, overhead, False if arguments.no_ecc else None, display)


def context_of(arguments: argparse.Namespace, made_for: int | None) -> int:
    """Tokens of each conversation: as asked for, else what suits a model made for so many."""
    return int(arguments.context or min(_CONTEXT, made_for or _CONTEXT))


def asked(
    arguments: argparse.Namespace, model: Model, cards: list[Gpu], cuda: tuple[int, int]
) -> tuple[Settings, tuple[Device, ...]]:
    """The settings and the GPUs that the arguments of :func:`add_settings` name.

    Raises:
        UserError: one is not what it should be.
    """
    from legacy_cuda.catalog import estimates, models
    from legacy_cuda.planner.placement import Settings

    keys, _, values = arguments.kv_type.partition(",")
    try:
        key_format, value_format = models.find_format(keys), models.find_format(values or keys)
    except CatalogError as problem:
        raise output.unknown(problem, "f16 needs no flash attention and is the safe choice") from (
            problem
        )
    where = devices(arguments, cards, estimates.overhead(cuda))
    split = _numbers(arguments.split, "--split") if arguments.split else None
    if split is not None and not sum(split):
        raise UserError("the shares of --split are all 0", next_step="as 3,1")
    if split is not None and len(split) != len(where):
        raise UserError(
            f"--split has {len(split)} shares for {len(where)} GPUs",
            "each die of a card is a GPU of its own" if len(where) > len(cards) else "",
        )
    settings = Settings(
        context=context_of(arguments, model.shape.context),
        parallel=arguments.parallel,
        keys=key_format,
        values=value_format,
        flash={"on": True, "off": False}.get(arguments.flash_attention),
        layers=arguments.layers,
        split=split,
        batch=arguments.batch,
        unified=arguments.unified,
        all_logits=getattr(arguments, "engine", "") == "ollama",
    )
    return settings, where


def _model(arguments: argparse.Namespace) -> tuple[Model, bool]:
    """The model, and whether its quantisation was given."""
    from legacy_cuda.catalog import models
    from legacy_cuda.planner import gguf, metadata, safetensors, shapes
    from legacy_cuda.planner.model import ModelError

    mix: Mix | None = None
    try:
        mix = models.find_mix(arguments.quantisation) if arguments.quantisation else None
    except CatalogError as problem:
        known = ", ".join(models.mixes())
        raise output.unknown(problem, f"known here: {known}") from problem
    path = Path(arguments.model)
    try:
        if path.is_file():
            if mix is not None:
                raise UserError(
                    f"{path.name} is quantised already",
                    next_step="leave out --quantisation; the plan says what other ones would take",
                )
            return metadata.model_of(gguf.read(path), path.name), True
        if path.is_dir():
            if not (path / "config.json").is_file():
                raise UserError(
                    f"{path} is no folder of a model",
                    "it has no config.json",
                    "name a GGUF file, or a name from legacy-cuda plan --models",
                )
            return safetensors.read(path, mix or models.find_mix("F16")), mix is not None
    except ModelError as error:
        raise UserError(f"{path} cannot be planned", str(error)) from error
    except OSError as error:
        raise SurroundingsError(f"{path} cannot be read", str(error)) from error
    if path.suffix in (".gguf", ".safetensors") or len(path.parts) > 1:
        raise UserError(
            f"there is no file {path}",
            next_step="name a GGUF file, or a name from legacy-cuda plan --models",
        )
    try:
        known_shape = models.find_model(arguments.model.removesuffix(":latest"))
    except CatalogError as problem:
        raise output.unknown(problem, "legacy-cuda plan --models lists all of them") from problem
    return shapes.model_of(known_shape, mix or models.find_mix("Q4_K_M")), mix is not None


def _list_models(as_json: bool) -> int:
    from legacy_cuda.catalog import models

    found = models.models()
    if as_json:
        output.document(
            "models",
            {
                "models": [
                    {
                        "name": item.name,
                        "title": item.title,
                        "aliases": list(item.aliases),
                        "architecture": item.architecture,
                        "parameters": item.parameters,
                        "context": item.context,
                        "source": item.source,
                        "verified": item.verified,
                    }
                    for item in found
                ]
            },
        )
        return 0
    rows = [["name", "model", "parameters", "context", "shape"]]
    rows += [
        [
            item.name,
            item.title,
            f"{item.parameters / 1e9:.1f} G",
            str(item.context),
            "compared" if item.verified else "not compared",
        ]
        for item in found
    ]
    print(output.table(rows, lambda cell: ("dim",) if cell == "not compared" else ()))
    return 0


# JSON -------------------------------------------------------------------------------------------


def _device(device: Device, load: Load, spare: int) -> dict[str, Any]:
    return {
        "gpu": device.gpu.name,
        "name": device.name,
        "product": device.gpu.product,
        "capability": str(device.gpu.capability),
        "total_mib": device.total_mib,
        "total_known": device.total_known,
        "layers": load.layers,
        "bytes": {
            "weights": load.weights,
            "cache": load.cache,
            "state": load.state,
            "compute": load.compute,
            "pool": load.pool,
            "overhead": device.overhead.likely_mib * _MIB,
            "display": device.display_mib * _MIB,
            "spare": spare,
        },
        "overhead_most_mib": device.overhead.most_mib,
    }


def _brief(result: Result) -> dict[str, Any]:
    return {
        "quantisation": result.model.quantisation,
        "model_bytes": result.model.bytes,
        "context": result.settings.context,
        "parallel": result.settings.parallel,
        "kv": [result.settings.keys.name.lower(), result.settings.values.name.lower()],
        "layers": result.settings.layers,
        "split": None if result.settings.split is None else list(result.settings.split),
        "verdict": result.verdict,
        "spare_bytes": list(result.spare),
    }


def document(plan: Plan, engine: str, cuda: tuple[int, int]) -> dict[str, Any]:
    """The plan as JSON. Sizes in bytes unless a name says MiB."""
    from legacy_cuda.planner.notes import notes_of

    result, speed = plan.result, plan.speed
    placement, host = result.placement, result.placement.host
    return {
        "model": result.model.name,
        "architecture": result.model.shape.architecture,
        "quantisation": result.model.quantisation,
        "parameters": result.model.parameters,
        "model_bytes": result.model.bytes,
        "engine": engine,
        "cuda": None if engine == "ollama" else dotted(cuda),
        "verdict": result.verdict,
        "problem": result.problem,
        "settings": {
            **_brief(result),
            "batch": result.settings.batch,
            "unified": result.settings.unified,
            "flash_attention": placement.flash,
            "cells": result.settings.total,
        },
        "devices": [
            _device(*item)
            for item in zip(result.devices, placement.gpus, result.spare, strict=True)
        ],
        "host": {
            "layers": host.layers,
            "bytes": {"weights": host.weights, "cache": host.cache, "compute": host.compute},
        },
        "compute_counted": placement.exact,
        "context_most": plan.context_most,
        "context_of_model": result.model.shape.context,
        "best_quantisation": None if plan.best is None else plan.best.model.quantisation,
        "quantisations": [_brief(item) for item in plan.mixes],
        "speed": None
        if speed is None
        else {
            "decode_tokens_s": list(speed.decode),
            "decode_full_context_tokens_s": list(speed.decode_full),
            "prefill_tokens_s": list(speed.prefill),
            "measured_basis": speed.measured,
            "basis": list(speed.basis),
        },
        "options": [
            {"what": item.what, "cost": item.cost, **_brief(item.result)} for item in plan.options
        ],
        "notes": notes_of(plan, engine),
    }


# For people -------------------------------------------------------------------------------------


def show(plan: Plan, engine: str, cuda: tuple[int, int]) -> None:
    """The plan for people."""
    facts = document(plan, engine, cuda)
    text, colour = _VERDICTS[facts["verdict"]]
    cards = ", ".join(item["name"] for item in facts["devices"])
    head = f"{facts['model']} {facts['quantisation']} on {cards}: "
    print(head + output.paint(text, colour, "bold"))
    settings = facts["settings"]
    flash = "flash attention" if settings["flash_attention"] else "no flash attention"
    kv = "/".join(dict.fromkeys(settings["kv"]))
    how = (
        f"{settings['context']} tokens x {settings['parallel']} "
        f"conversation{'s' if settings['parallel'] > 1 else ''}, KV cache {kv}, {flash}, "
        f"{engine}, {'CUDA ' + facts['cuda'] if facts['cuda'] else 'with a CUDA of its own'}"
    )
    print(output.wrapped("", how, 2))
    if facts["problem"]:
        print(output.wrapped("  because", facts["problem"], 12))
    _pictures(facts)
    _speed(facts)
    _alternatives(facts)
    for note in facts["notes"]:
        print(output.wrapped("  note", note, 12))


def _pictures(facts: dict[str, Any]) -> None:
    """A bar of each GPU's memory, with what the parts are."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, width=output.width())
    longest = max(len(name) for name in ("host", *(item["name"] for item in facts["devices"])))
    beside = [_beside(item) for item in facts["devices"]]
    wide = max(10, output.width() - longest - 6 - max(len(used + short) for used, short in beside))
    scale = wide / max(item["total_mib"] for item in facts["devices"]) / _MIB
    for item, (used, short) in zip(facts["devices"], beside, strict=True):
        sizes = item["bytes"]
        room = round(item["total_mib"] * _MIB * scale)
        bar, end, drawn = Text(), 0.0, 0
        for key, _, sign, colour in _PARTS:
            end += sizes[key] * scale
            length = max(0, min(round(end), wide) - drawn)
            bar.append(sign * length, style=colour)
            drawn += length
        bar.append("·" * max(0, room - drawn), style="dim")
        line = Text(f"  {item['name']:<{longest}}  ")
        line.append_text(bar)
        line.append(f"  {used}").append(short, style="bold red")
        console.print(line, overflow="ignore", crop=False, soft_wrap=True)
        for parts in _legend(sizes, longest + 4):
            console.print(parts, overflow="ignore", crop=False, soft_wrap=True)
    host = facts["host"]["bytes"]
    text = (
        f"weights {host['weights'] / _MIB:.0f}, KV cache {host['cache'] / _MIB:.0f}, "
        f"compute {host['compute'] / _MIB:.0f} MiB"
        + (f", {facts['host']['layers']} layers" if facts["host"]["layers"] else "")
    )
    print(output.wrapped("  host", text, longest + 4))


def _beside(item: dict[str, Any]) -> tuple[str, str]:
    """What stands beside a GPU's bar: what is used, and what is missing."""
    sizes = item["bytes"]
    used = sum(sizes[key] for key, *_ in _PARTS) / _MIB
    short = f", {-sizes['spare'] / _MIB:.0f} MiB short" if sizes["spare"] < 0 else ""
    return f"{used:.0f} of {item['total_mib']} MiB, {item['layers']} layers", short


def _legend(sizes: dict[str, int], indent: int) -> list[Text]:
    """What the parts of a bar are, in as many lines as it takes."""
    from rich.text import Text

    lines = [Text(" " * indent)]
    for key, name, sign, colour in _PARTS:
        if not sizes[key]:
            continue
        part = Text(sign, style=colour).append(f" {name} {sizes[key] / _MIB:.0f}", style="default")
        if len(lines[-1]) > indent:
            if len(lines[-1]) + 3 + len(part) > output.width():
                lines.append(Text(" " * indent))
            else:
                lines[-1].append("   ")
        lines[-1].append_text(part)
    return lines


def _span(values: list[float]) -> str:
    low, high = values
    return f"{low:.0f} to {high:.0f}" if low >= 10 else f"{low:.1f} to {high:.1f}"


def _speed(facts: dict[str, Any]) -> None:
    speed = facts["speed"]
    if facts["verdict"] == "not" or speed is None:
        return
    kind = "estimate" if speed["measured_basis"] else "estimate without a measurement behind it"
    print(
        output.wrapped(
            "  speed",
            f"{_span(speed['decode_tokens_s'])} tokens/s when generating "
            f"({_span(speed['decode_full_context_tokens_s'])} with a full context), "
            f"{_span(speed['prefill_tokens_s'])} tokens/s when reading a prompt ({kind})",
            12,
        )
    )


def _alternatives(facts: dict[str, Any]) -> None:
    most, made = facts["context_most"], facts["context_of_model"]
    if most:
        limit = " (all that the model was made for)" if most >= made - made % 256 and made else ""
        print(output.wrapped("  context", f"at most {most} tokens each{limit}", 12))
    rows = [["  quantisation", "file", "", "left on the fullest GPU"]]
    for item in facts["quantisations"]:
        mark = " *" if item["quantisation"] == facts["best_quantisation"] else ""
        rows.append(
            [
                f"  {item['quantisation']}{mark}",
                sizes.readable(item["model_bytes"]),
                _VERDICTS[item["verdict"]][0],
                f"{min(item['spare_bytes']) / _MIB:.0f} MiB",
            ]
        )
    colours = {text: (colour,) for text, colour in _VERDICTS.values()}
    print(output.table(rows, lambda cell: colours.get(cell, ())))
    for item in facts["options"]:
        split = item["split"]
        more = f" (--split {','.join(f'{value:g}' for value in split)})" if split else ""
        print(output.wrapped("  instead", f"{item['what']}{more}: {item['cost']}", 12))
