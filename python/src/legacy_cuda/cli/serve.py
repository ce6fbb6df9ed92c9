"""``legacy-cuda serve``: a model by an engine, placed as ``plan`` says."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from legacy_cuda import sizes
from legacy_cuda.catalog import CatalogError
from legacy_cuda.cli import output
from legacy_cuda.cli import plan as plan_command
from legacy_cuda.engines import PORTS
from legacy_cuda.errors import Refused, SurroundingsError, UserError

if TYPE_CHECKING:
    from legacy_cuda.capability import Capability
    from legacy_cuda.catalog import Gpu
    from legacy_cuda.engines import Service
    from legacy_cuda.planner.model import Model
    from legacy_cuda.planner.plan import Result

_ENGINES = ("llama-server", "ollama", "vllm", "sglang")
# settings of a plan that the other engines do not have
_LLAMA_ONLY = ("layers", "split", "batch", "unified", "kv_type", "flash_attention")
_OLLAMA_TOO = ("kv_type", "flash_attention")
# the quantisation in the tag of a model of Ollama's: 8b-llama3.1-q5_K_M
_TAG = re.compile(r"(?:^|-)((?:iq|q)\d\w*|f16|fp16|bf16)$", re.IGNORECASE)
_EPILOG = """examples:
  legacy-cuda serve model.gguf --gpu p40 --context 8192 --parallel 4
  legacy-cuda serve model.gguf --gpu p4000,gtx1060-6gb --systemd > llama.service
  legacy-cuda serve model.gguf --gpu k80 --env
  legacy-cuda serve model.gguf --gpu p40 --compose > compose.yaml
  legacy-cuda serve hermes3:8b --engine ollama --gpu p4000,gtx1060-6gb --merged
  legacy-cuda serve qwen3-8b-gptq/ --engine vllm --gpu p40 --parallel 8
  legacy-cuda serve model.gguf --gpu p40 --litellm --beside ollama/hermes3:8b=http://127.0.0.1:11434
"""


def add(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "serve",
        help="serve a model as planned, or print a service, a compose file, settings",
        description="Start an engine with the arguments and the environment that place a model on "
        "the GPUs as `plan` says; say when it is ready and uses them; start it again when it "
        "crashes. A file that is damaged, or that does not fit, is refused before anything is "
        "started.",
        epilog=_EPILOG,
        formatter_class=output.HelpFormatter,
        # argparse would write the forms, which exclude each other, on one line
        usage="legacy-cuda serve [options] model",
    )
    parser.add_argument(
        "model",
        help="a GGUF file (any part of a split one); for vLLM a folder with config.json and "
        "safetensors; for Ollama a model's name",
    )
    parser.add_argument(
        "--engine",
        choices=_ENGINES,
        help="(default: llama-server for a file, vllm for a folder)",
    )
    plan_command.add_settings(parser)
    parser.add_argument("--name", help="what it is called over HTTP (default: the file's name)")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: loopback)")
    parser.add_argument(
        "--port",
        type=output.whole(1, 65535),
        help="(default: 8080; Ollama 11434, vLLM 8000)",
    )
    parser.add_argument(
        "--program",
        help="the engine (default: the one on PATH: activate the environment that `up` made)",
    )
    parser.add_argument(
        "--unit", type=Path, help="Ollama's own service (default: where systemd looks for it)"
    )
    parser.add_argument(
        "--beside",
        action="append",
        default=[],
        metavar="MODEL=URL",
        help="another engine, for --litellm and --open-webui; ollama/MODEL=URL for an Ollama",
    )
    parser.add_argument(
        "--anyway", action="store_true", help="start it although the plan says it does not fit"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--systemd", action="store_true", help="print a service instead")
    form.add_argument(
        "--drop-in", action="store_true", help="print a drop-in for Ollama's own service instead"
    )
    form.add_argument(
        "--merged", action="store_true", help="print Ollama's own service with that drop-in instead"
    )
    form.add_argument("--compose", action="store_true", help="print a compose file instead")
    form.add_argument("--nix", action="store_true", help="print options for NixOS instead")
    form.add_argument("--litellm", action="store_true", help="print LiteLLM's settings instead")
    form.add_argument(
        "--open-webui", action="store_true", help="print Open WebUI's variables instead"
    )
    form.add_argument("--env", action="store_true", help="print variables and command instead")
    form.add_argument("--json", action="store_true", help="print both as one JSON document instead")
    usual = {name: parser.get_default(name) for name in _LLAMA_ONLY}
    parser.set_defaults(run=run, usual=usual)


def run(arguments: argparse.Namespace) -> int:
    """Serve, or print.

    Raises:
        Refused: it does not fit, or the cards are refused.
    """
    if arguments.engine is None:
        arguments.engine = "vllm" if Path(arguments.model).is_dir() else "llama-server"
    if (arguments.drop_in or arguments.merged) and arguments.engine != "ollama":
        raise UserError(
            "a drop-in is for the service of Ollama, which it brings itself",
            next_step="--systemd prints a service",
        )
    _check_settings(arguments)
    if arguments.systemd and arguments.engine == "ollama":
        raise UserError(
            "Ollama brings a service of its own",
            "another one would have a folder of models of its own, without a model in it",
            "--drop-in prints what that service is to have",
        )
    from legacy_cuda.cli.resolve import chosen_gpus

    cards = chosen_gpus(arguments.gpu or [])
    _check_cards(arguments.engine, cards)
    build = {"llama-server": _llama_server, "ollama": _ollama, "vllm": _vllm}[arguments.engine]
    service = build(arguments, cards)
    try:
        text = _printed(arguments, service, cards)
    except ValueError as error:
        raise UserError("this cannot be written for a service", str(error)) from error
    if text is None:
        return _foreground(service)
    sys.stdout.write(text)
    return 0


def _check_settings(arguments: argparse.Namespace) -> None:
    """Refuse what was asked for and would be left out.

    Raises:
        UserError: the engine has no such setting.
    """
    if arguments.engine not in ("ollama", "vllm"):
        return
    for name in _LLAMA_ONLY:
        if getattr(arguments, name) == arguments.usual[name]:
            continue
        if arguments.engine == "ollama" and name in _OLLAMA_TOO:
            continue
        raise UserError(
            f"{arguments.engine} is not given --{name.replace('_', '-')}",
            "it decides by itself what it puts where and how",
            "leave it out, or take llama-server",
        )
    if arguments.engine == "ollama" and "," in arguments.kv_type:
        raise UserError("Ollama has one format for keys and values", next_step="--kv-type q8_0")


def _check_cards(engine: str, cards: list[Gpu]) -> None:
    """Refuse cards that the account refuses for this engine.

    Raises:
        Refused: with the account's reasons, and what works instead.
    """
    from legacy_cuda.resolve import Refusal, resolve

    if engine in ("llama-server", "ollama"):  # the latter is not packaged, but people have it
        try:
            plan_command.cuda_for(cards, engine)
            return
        except Refused as problem:
            because, instead = problem.why, problem.next_step
    else:
        answer = resolve(cards, output.read_engine(engine))
        if not isinstance(answer, Refusal):
            return
        because, instead = "\n".join(answer.because), "\n".join(answer.instead)
    names = ", ".join(dict.fromkeys(card.name for card in cards))
    raise Refused(f"{engine} is refused on {names}", because, instead)


def _capabilities(cards: list[Gpu]) -> list[Capability]:
    """Of each GPU: a card of two dies is two."""
    return [card.capability for card in cards for _ in range(card.dies)]


def _address(arguments: argparse.Namespace) -> Any:
    from legacy_cuda.engines import Address

    return Address(arguments.host, arguments.port or PORTS[arguments.engine])


# What is to be run -------------------------------------------------------------------------------


def _llama_server(arguments: argparse.Namespace, cards: list[Gpu]) -> Service:
    from legacy_cuda.catalog.serving import variables_for
    from legacy_cuda.engines import Service, llama_server
    from legacy_cuda.planner import gguf, metadata
    from legacy_cuda.planner.model import ModelError

    path = Path(arguments.model)
    if not path.exists():
        raise UserError(
            f"there is no file {path}",
            next_step="serve needs a GGUF file; legacy-cuda plan knows models by name",
        )
    try:
        model = metadata.model_of(gguf.read(path), path.name)
    except ModelError as error:
        raise UserError(f"{path} is not served", str(error)) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read", str(error)) from error
    result = _planned(arguments, model, cards)
    first = gguf.parts(path)[0].absolute()
    program = _program(arguments, llama_server.PROGRAM)
    name = arguments.name or path.stem
    address = _address(arguments)
    kinds = [device.gpu.capability for device in result.devices]
    return Service(
        engine=llama_server.NAME,
        model=name,
        command=(str(program), *llama_server.arguments(result, first, address, name)),
        environment={row.name: row.value for row in variables_for(llama_server.NAME, kinds)},
        address=address,
        health=llama_server.HEALTH,
        metrics=llama_server.METRICS,
        readable=tuple(readable(program, [item.absolute() for item in gguf.parts(path)])),
        planned=_on_gpus(result),
    )


def _on_gpus(result: Result) -> tuple[int, ...]:
    """Bytes that a model takes on each GPU by itself; nothing where none is used."""
    if result.settings.layers == 0:
        return ()
    return tuple(load.weights + load.cache + load.state for load in result.placement.gpus)


def _ollama(arguments: argparse.Namespace, cards: list[Gpu]) -> Service:
    from legacy_cuda.engines import Service, ollama

    model = _ollama_model(arguments.model)
    result, settings = None, None
    if model is None:
        print(
            f"nothing is known of {arguments.model}: whether it fits is not said, and Ollama's own "
            "context is left",
            file=sys.stderr,
        )
    else:
        result = _planned(arguments, model, cards)
        # as planned, not as Ollama finds: it would not use it for some models
        settings = replace(result.settings, flash=result.placement.flash)
    kinds = _capabilities(cards)
    address = _address(arguments)
    unit_file = ollama.unit_file(arguments.unit)
    program = _ollama_program(arguments, unit_file)
    folder = ollama.libraries(program, kinds)
    asked_for = arguments.port or arguments.host != "127.0.0.1"
    left = (arguments.drop_in or arguments.merged) and not asked_for
    return Service(
        engine=ollama.NAME,
        model=arguments.model,
        command=(str(program), "serve"),
        environment=ollama.environment(kinds, settings, None if left else address, folder),
        address=address,
        health=ollama.HEALTH,
        metrics="",
        readable=(),
        planned=_on_gpus(result) if result else (1,),
        writes=True,
    )


def _ollama_program(arguments: argparse.Namespace, unit_file: Path | None) -> Path:
    """The program of its own service, or the one that is asked for or on PATH."""
    from legacy_cuda.doctor import units
    from legacy_cuda.engines import ollama

    if arguments.program is None and unit_file is not None:
        words = units.command(units.settings([_text_of(unit_file)]))
        if words and words[0].startswith("/"):
            return Path(words[0])
    if arguments.compose or arguments.nix or arguments.litellm or arguments.open_webui:
        return Path(ollama.PROGRAM)
    return _program(arguments, ollama.PROGRAM)


def _ollama_model(name: str) -> Model | None:
    """What is known of a model of Ollama's, by its name and tag; None where nothing is."""
    from legacy_cuda.catalog import models
    from legacy_cuda.planner import shapes

    base, _, tag = name.removesuffix(":latest").partition(":")
    found = _TAG.search(tag)
    mix = "Q4_K_M" if found is None else found[1].upper().replace("FP16", "F16")
    for text in dict.fromkeys((name, f"{base}:{tag.partition('-')[0]}" if tag else base)):
        try:
            return shapes.model_of(models.find_model(text), models.find_mix(mix))
        except CatalogError:
            continue
    return None


def _vllm(arguments: argparse.Namespace, cards: list[Gpu]) -> Service:
    from legacy_cuda.catalog import estimates
    from legacy_cuda.engines import Service, vllm
    from legacy_cuda.planner import safetensors
    from legacy_cuda.planner.model import ModelError
    from legacy_cuda.resolve import Stack, resolve

    folder = Path(arguments.model)
    wanted = (
        "vLLM serves a folder with config.json and safetensors; for a GGUF file name the file, "
        "and leave out --engine vllm"
    )
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is no folder of a model", "it has no config.json", wanted)
    if len({card.capability for card in cards}) > 1:
        raise UserError(
            "vLLM gives every GPU the same part of every layer",
            "these cards are of several capabilities",
            "name cards of one kind, or take llama-server",
        )
    try:
        found = safetensors.contents(folder)
    except ModelError as error:
        raise UserError(f"{folder} is not served", str(error), wanted) from error
    except OSError as error:
        raise UserError(f"{folder} cannot be read", str(error)) from error
    answer = resolve(cards, output.read_engine("vllm"))
    assert isinstance(answer, Stack)  # the refusal was said before
    where = plan_command.devices(arguments, cards, estimates.overhead(answer.facts.cuda))
    context = plan_command.context_of(arguments, found.shape.context)
    setup = vllm.set_up(found.config, found.shape, found.size, where, context, arguments.parallel)
    if setup.refused and not arguments.anyway:
        raise Refused(
            f"vLLM does not serve {folder.name} on these cards",
            setup.refused,
            "a smaller --context or fewer --parallel, another quantisation (GPTQ), or llama-server "
            "with a GGUF file",
        )
    if note := vllm.note(found.config):
        print(note, file=sys.stderr)
    program = _program(arguments, vllm.PROGRAM)
    if lacks := vllm.without_code(program, [device.gpu.capability for device in where]):
        raise Refused(
            f"{program} does not run on these cards",
            lacks,
            f"legacy-cuda up {cards[0].name} --engine vllm makes an environment with one for them; "
            "activate it, or name its program with --program",
        )
    address = _address(arguments)
    name = arguments.name or found.shape.name
    return Service(
        engine=vllm.NAME,
        model=name,
        command=(str(program), *vllm.arguments(setup, folder.absolute(), address, name)),
        environment=vllm.environment([device.gpu.capability for device in where]),
        address=address,
        health=vllm.HEALTH,
        metrics=vllm.METRICS,
        readable=tuple(readable(program, [folder.absolute()])),
        planned=tuple(setup.weights for _ in where),
        writes=True,
    )


def _planned(arguments: argparse.Namespace, model: Model, cards: list[Gpu]) -> Result:
    """The placement.

    Raises:
        Refused: it does not fit.
        UserError: a setting is not what it should be.
    """
    from legacy_cuda.planner import plan as planner

    cuda = plan_command.cuda_for(cards, arguments.engine)
    settings, where = plan_command.asked(arguments, model, cards, cuda)
    try:
        result = planner.balanced(model, settings, where)
    except ValueError as error:
        raise UserError("this cannot be counted", str(error)) from error
    if result.fits or (arguments.anyway and not result.problem):
        return result
    missing = sizes.mib(-min(result.spare))
    why = result.problem or f"{missing} MiB are missing on the fullest GPU"
    raise Refused(
        f"{Path(arguments.model).name} does not fit",
        why,
        "legacy-cuda plan with the same arguments says what does",
    )


# What is printed, or started ---------------------------------------------------------------------


def _printed(arguments: argparse.Namespace, service: Service, cards: list[Gpu]) -> str | None:
    """What was asked for instead of a service in the foreground; None where nothing was.

    Raises:
        ValueError: a word has a line break in it.
    """
    from legacy_cuda.engines import unit, vllm

    if arguments.json:
        content: dict[str, Any] = {
            "engine": service.engine,
            "command": list(service.command),
            "environment": dict(service.environment),
            "url": service.address.url,
            "health": service.address.url + service.health,
            "metrics": service.address.url + service.metrics if service.metrics else None,
            "planned_bytes": list(service.planned),
        }
        output.document("serve", content)
        return ""
    if arguments.env:
        return unit.environment_file(service.environment, service.command)
    if arguments.systemd:
        return unit.unit(
            f"{service.model} by {service.engine}",
            service.command,
            service.environment,
            readable=service.readable,
            loopback=service.loopback,
            cache=f"legacy-cuda-{service.engine}" if service.writes else "",
            families=vllm.FAMILIES if service.engine == vllm.NAME else (),
        )
    if arguments.drop_in or arguments.merged:
        return _drop_in(arguments, service, cards)
    if arguments.compose:
        return _compose(arguments, service, cards)
    if arguments.nix:
        return _nix(arguments, service, cards)
    if arguments.litellm or arguments.open_webui:
        return _gateway(arguments, service)
    return None


def _drop_in(arguments: argparse.Namespace, service: Service, cards: list[Gpu]) -> str:
    from legacy_cuda.catalog.serving import variables_for
    from legacy_cuda.engines import ollama, unit

    kinds = _capabilities(cards)
    reasons = {row.name: row.why for row in variables_for(ollama.NAME, kinds)}
    text = unit.drop_in(
        {
            name: (value, reasons.get(name, "as planned"))
            for name, value in service.environment.items()
        },
        devices=True,
    )
    if arguments.drop_in:
        return text
    file = ollama.unit_file(arguments.unit)
    if file is None:
        raise UserError(
            f"there is no {ollama.UNIT}" if arguments.unit is None else f"no file {arguments.unit}",
            next_step="name its file with --unit; --drop-in prints the drop-in alone",
        )
    found = [(path, _text_of(path)) for path in ollama.drop_ins(file)]
    found.append((file.with_name(f"{ollama.UNIT}.d") / ollama.DROP_IN, text))
    _say_what_does_nothing(found, file)
    return unit.merged(file, _text_of(file), sorted(found, key=lambda one: one[0].name))


def _say_what_does_nothing(drop_ins: list[tuple[Path, str]], file: Path) -> None:
    """Say on standard error which variables of the service do nothing, and which are set over."""
    from legacy_cuda.catalog.serving import no_settings
    from legacy_cuda.doctor import units

    ours = units.variables(units.settings([drop_ins[-1][1]]))
    for path, text in [(file, _text_of(file)), *drop_ins[:-1]]:
        set_there = units.variables(units.settings([text]))
        for row in no_settings("ollama"):
            if row.name in set_there:
                print(f"{path.name}: {row.name} does nothing: {row.why}", file=sys.stderr)
        for name, value in set_there.items():
            if name in ours and ours[name] != value:
                later = path.name > drop_ins[-1][0].name and path != file
                what = "wins over" if later else "gives way to"
                print(f"{path.name}: {name}={value} {what} {ours[name]}", file=sys.stderr)


def _compose(arguments: argparse.Namespace, service: Service, cards: list[Gpu]) -> str:
    from legacy_cuda.catalog.serving import image
    from legacy_cuda.engines import Address, compose

    found = image(service.engine)
    program = Path(service.command[0])
    python = (program.parent / "python").resolve()
    in_environment = (program.parent.parent / "pyvenv.cfg").is_file()
    if found.mounted and in_environment and python.is_relative_to("/usr"):
        raise UserError(
            f"the environment of {program} runs with {python}, which the image does not have",
            "the folders of a container's own system are not mounted over",
            "--systemd prints a service; or make the environment with a Python that is not the "
            "system's: legacy-cuda up with --python and a version for uv to download",
        )
    inside = Address("0.0.0.0", service.address.port)
    words = list(service.command)
    environment = dict(service.environment)
    if "--host" in words:
        words[words.index("--host") + 1] = inside.host
    if "OLLAMA_HOST" in environment:
        environment["OLLAMA_HOST"] = inside.netloc
    gpus = sum(card.dies for card in cards) if service.planned else 0
    if service.engine == "ollama":
        words, probe = words[1:], ["ollama", "list"]
        environment.pop("LD_LIBRARY_PATH", None)  # the image has its own folder
        environment["OLLAMA_MODELS"] = "/data"
    else:
        probe = compose.probe(service.address.port, service.health)
    changed = replace(service, command=tuple(words), environment=environment)
    comments = [
        f"{service.model} by {service.engine}, placed by legacy-cuda serve",
        "The host needs NVIDIA's driver and its container toolkit.",
    ]
    return compose.text(compose.document(changed, found, gpus, probe), comments)


def _nix(arguments: argparse.Namespace, service: Service, cards: list[Gpu]) -> str:
    from legacy_cuda.engines import nixos

    names = [card.name for card in cards]
    if service.engine == "llama-server":
        words = list(service.command)
        model = words[words.index("--model") + 1]
        return nixos.text(nixos.llama_cpp(names, service, model))
    if service.engine == "ollama":
        return nixos.text(nixos.ollama(names, service))
    raise UserError(
        f"there is no module of {service.engine} for NixOS here",
        next_step="--systemd prints a service",
    )


def _gateway(arguments: argparse.Namespace, service: Service) -> str:
    from legacy_cuda.engines import compose, gateway, unit

    endpoints = [gateway.Endpoint(service.engine, service.model, service.address.url)]
    for text in arguments.beside:
        name, _, url = text.rpartition("=")
        engine = "ollama" if name.startswith("ollama/") else "other"
        if not name or not re.match(r"https?://[^/\s]+$", url.rstrip("/")):
            raise UserError(
                f"--beside {text!r} names no engine",
                next_step="as qwen=http://127.0.0.1:8081 or ollama/hermes3:8b=http://127.0.0.1:11434",
            )
        endpoints.append(gateway.Endpoint(engine, name.removeprefix("ollama/"), url.rstrip("/")))
    if arguments.open_webui:
        # by itself it listens on every address
        command = ["open-webui", "serve", "--host", "127.0.0.1", "--port", "3000"]
        return unit.environment_file(gateway.open_webui(endpoints), command)
    return compose.text(
        gateway.litellm(endpoints),
        ["LITELLM_MASTER_KEY=sk-... litellm --config FILE --host 127.0.0.1"],
    )


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path} cannot be read", str(error)) from error


def _foreground(service: Service) -> int:
    from legacy_cuda.engines import run as runner

    address = service.address
    if runner.is_taken(address.host, address.port):
        raise SurroundingsError(
            f"something listens on {address.host} port {address.port} already",
            next_step="--port names another one",
        )
    print(f"starting {address.url}", file=sys.stderr, flush=True)
    engine = runner.Engine(
        service.command,
        service.environment,
        address.url + service.health,
        planned=service.planned,
        prove=(lambda: runner.ollama_proof(address.url, service.model))
        if service.engine == "ollama"
        else None,
        on_gpus_only=service.engine == "vllm",
    )
    return runner.serve(
        engine, lambda text: print(f"{address.url}: {text}", file=sys.stderr, flush=True)
    )


def _program(arguments: argparse.Namespace, name: str) -> Path:
    """The engine's program by its full path.

    Raises:
        SurroundingsError: there is none.
    """
    found = shutil.which(arguments.program or name)
    if found is None:
        engine = {"llama-server": "llama-cpp"}.get(arguments.engine, arguments.engine)
        makes = (
            f"legacy-cuda up GPU --engine {engine} makes an environment with it; activate that, "
        )
        raise SurroundingsError(
            f"there is no program {arguments.program or name}",
            next_step="name the program with --program"
            if arguments.engine == "ollama"
            else makes + "or name the program with --program",
        )
    return Path(found).absolute()


def readable(program: Path, models: list[Path]) -> list[Path]:
    """What the service sees of a home folder: the model, and the environment that the program is in
    with its Python, or else the program and the libraries beside it. Never a home as a whole.

    Raises:
        UserError: the environment is a home folder, or holds all of them.
    """
    place = program.parent.parent
    if not (place / "pyvenv.cfg").is_file():
        found = [program, *sorted(program.parent.glob("lib*.so*"))]
    elif _is_broad(place):
        raise UserError(
            f"the environment of {program} is {place}, too much to show to a service",
            next_step="make an environment in a folder of its own, as legacy-cuda up does",
        )
    else:
        found = [place, *_python(program.parent / "python", place)]
    return list(dict.fromkeys([*found, *models]))


def _python(link: Path, place: Path) -> list[Path]:
    """What an environment's Python needs outside of it: the folder of each link on the way to it,
    and the folder that it is installed in, under each name that it goes by."""
    found = []
    for _ in range(40):  # as many as Linux follows
        if not link.is_symlink():
            break
        if link.parent.parent != place:
            found.append(link if _is_broad(link.parent) else link.parent)
        link = Path(os.path.normpath(link.parent / link.readlink()))
    if not link.is_file():
        return []
    for python in (link, link.resolve()):
        installed = python.parent.parent
        if _is_broad(installed):
            found += [python.parent, *sorted(installed.glob("lib/python3*"))]
        else:
            found.append(installed)
    return [folder for folder in found if not folder.is_relative_to("/usr")]


def _is_broad(folder: Path) -> bool:
    """Whether a folder is a home, or holds one, or is where a person's programs keep their data."""
    homes = (Path("/root"), Path.home())
    return (
        Path("/home") in (folder, folder.parent)
        or folder in [home / ".local" for home in homes]
        or any(home.is_relative_to(folder) for home in homes)
    )
