"""``legacy-cuda monitor``: GPU metrics for Prometheus, as CSV, or once."""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from legacy_cuda.cli import output
from legacy_cuda.engines import LOOPBACK
from legacy_cuda.errors import SurroundingsError, UserError
from legacy_cuda.monitor import INTERVAL, PORT

if TYPE_CHECKING:
    from legacy_cuda.catalog import Gpu
    from legacy_cuda.monitor.engines import Engine
    from legacy_cuda.monitor.metrics import State

_SHORTEST, _LONGEST = 0.5, 86400.0
_LAST_PORT = 65535
_LOOK = 1.0  # seconds between looks at the sampler
_LISTEN = f"127.0.0.1:{PORT}"
_NEXT_STEPS = {
    "LIBRARY_NOT_FOUND": "install the driver; legacy-cuda resolve names the branch for a card",
    "DRIVER_NOT_LOADED": "load the kernel module: modprobe nvidia",
    "LIB_RM_VERSION_MISMATCH": "the driver was updated: start the machine again",
}
_DESCRIPTION = """Serve what the NVIDIA driver says of its GPUs as metrics for Prometheus, write it
to a CSV file, or show it once. It only reads: nothing is set on a GPU. A GPU that is lost or hangs
is shown as such and holds nothing up; docs/monitor.md lists the metrics."""
_EPILOG = f"""examples:
  legacy-cuda monitor                                serve http://{_LISTEN}/metrics
  legacy-cuda monitor --power-cap p40=180            and alert when a P40 may draw more
  legacy-cuda monitor --engine ollama=http://127.0.0.1:11434
  legacy-cuda monitor --once                         the GPUs now, on the terminal
  legacy-cuda monitor --csv gpus.csv --interval 60   a row for each GPU every minute
  legacy-cuda monitor --alert-rules > gpu-alerts.yml
  legacy-cuda monitor --dashboard > gpus.json        for Grafana
  legacy-cuda monitor --systemd power-cap --power-cap p40=180 > legacy-cuda-power-cap.service
  legacy-cuda monitor --systemd thermal-guard --gpu p40 > legacy-cuda-thermal-guard.service
"""


def add(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "monitor",
        help="GPU metrics for Prometheus, alert rules, a dashboard, a CSV log",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=output.HelpFormatter,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--once", action="store_true", help="show the GPUs now, and end")
    what.add_argument(
        "--csv", type=Path, metavar="FILE", help="add rows to a file (-: standard output)"
    )
    what.add_argument(
        "--alert-rules", action="store_true", help="print the alert rules for Prometheus"
    )
    what.add_argument(
        "--systemd",
        choices=("exporter", "power-cap", "thermal-guard", "resume"),
        metavar="SERVICE",
        help="print a service: exporter (this), power-cap, thermal-guard (less power for a card "
        "that is too hot), resume (nvidia_uvm loaded anew after a suspend)",
    )
    what.add_argument("--dashboard", action="store_true", help="print the dashboard for Grafana")
    parser.add_argument(
        "--json", action="store_true", help="the GPUs now as one JSON document, and end"
    )
    parser.add_argument(
        "--listen",
        default=_LISTEN,
        metavar="HOST:PORT",
        help="where to serve (default: %(default)s, which other machines do not reach)",
    )
    parser.add_argument(
        "--interval",
        type=float,
        default=INTERVAL,
        metavar="SECONDS",
        help="between samples (default: %(default)g)",
    )
    parser.add_argument(
        "--power-cap",
        action="append",
        default=[],
        metavar="[GPU=]WATTS",
        help="the power limit that GPUs are meant to have, to alert when it is lost; sets nothing "
        "but with --systemd power-cap",
    )
    parser.add_argument(
        "--gpu",
        action="append",
        metavar="GPU",
        help="for --systemd thermal-guard: the cards (default: this machine's without a fan)",
    )
    parser.add_argument(
        "--unit",
        action="append",
        default=[],
        metavar="UNIT",
        help="for --systemd resume: services that use the GPUs (default: ollama.service)",
    )
    parser.add_argument(
        "--anyway", action="store_true", help="limits for a Kepler card too, which may halt it"
    )
    parser.add_argument(
        "--engine",
        action="append",
        dest="engines",
        default=[],
        metavar="KIND=URL",
        help="an engine to ask too (llama-server, ollama, vllm), to alert when it falls to the CPU",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked for."""
    if arguments.json and (
        arguments.csv or arguments.alert_rules or arguments.dashboard or arguments.systemd
    ):
        raise UserError(
            "--json shows the GPUs once",
            "it does not go with --csv, --alert-rules, --dashboard or --systemd",
            "leave out one of them",
        )
    if arguments.alert_rules or arguments.dashboard:
        return _print_data(arguments)
    if not _SHORTEST <= arguments.interval <= _LONGEST:
        raise UserError(
            f"samples cannot be {arguments.interval:g} seconds apart",
            f"from {_SHORTEST:g} seconds, as a sample takes a few tenths, to {_LONGEST:g}, a day",
            "choose another --interval",
        )
    if arguments.systemd:
        return _print_unit(arguments)
    caps = _power_caps(arguments.power_cap)
    if arguments.json or arguments.once:
        return _once(arguments.json)
    if arguments.csv:
        return _log(arguments.csv, arguments.interval)
    engines = _engines(arguments.engines)
    return _serve(*_address(arguments.listen), arguments.interval, caps, engines)


def _print_data(arguments: argparse.Namespace) -> int:
    from legacy_cuda.catalog.alerts import alerts
    from legacy_cuda.monitor import dashboard, rules

    if arguments.alert_rules:
        sys.stdout.write(rules.document(alerts()))
    else:
        json.dump(dashboard.document(alerts()), sys.stdout, indent=2)
        sys.stdout.write("\n")
    return 0


def _print_unit(arguments: argparse.Namespace) -> int:
    """A service on standard output, what there is to say of it on standard error."""
    import legacy_cuda
    from legacy_cuda.catalog.alerts import alerts
    from legacy_cuda.cli.serve import readable
    from legacy_cuda.monitor import units

    caps = _power_caps(arguments.power_cap)
    name = f"legacy-cuda-{arguments.systemd}.service"
    if arguments.systemd in ("power-cap", "thermal-guard"):
        _check_limits(caps)
    if arguments.systemd == "exporter":
        host, port = _address(arguments.listen)
        python = Path(sys.executable).absolute()
        command = [str(python), "-m", "legacy_cuda", "monitor", "--listen", f"{host}:{port}"]
        command += ["--interval", f"{arguments.interval:g}"]
        command += [word for text in arguments.power_cap for word in ("--power-cap", text)]
        command += [word for text in arguments.engines for word in ("--engine", text)]
        # a checkout's package is outside of the environment
        package = Path(legacy_cuda.__file__).parents[1]
        text = units.exporter(command, readable(python, [package]), host in LOOPBACK)
    elif arguments.systemd == "resume":
        text = units.resume(arguments.unit or ["ollama.service"])
    elif arguments.systemd == "power-cap":
        if not caps or "" in caps:
            raise UserError(
                "which cards are to have which limit?",
                "a limit for every card would be one for cards that it does not suit",
                "--power-cap p40=180, once for each kind of card",
            )
        cards = _spared(output.read_gpus(list(caps)), arguments.anyway)
        text = units.power_cap(units.limits(caps, cards))
    else:
        from legacy_cuda.cli.resolve import chosen_gpus

        if "" in caps:
            raise UserError(
                "which cards have which limit?",
                "the guard gives a card back the limit that was chosen for its kind",
                "--power-cap p40=180, once for each kind of card",
            )
        named = chosen_gpus(arguments.gpu or [])
        if arguments.gpu is None:
            named = [card for card in named if card.cooling != "active"]
        cards = _spared(named, arguments.anyway)
        degrees = next(one.threshold for one in alerts() if one.name == "NvidiaGpuHot")
        text = units.thermal_guard(units.guarded(degrees or 0.0, caps, cards))
    sys.stdout.write(text)
    print(f"for /etc/systemd/system/{name}", file=sys.stderr)
    return 0


def _check_limits(caps: dict[str, float]) -> None:
    """Refuse limits above what cards are made for.

    Raises:
        UserError: one is.
    """
    names = [name for name in caps if name]
    for card in output.read_gpus(names) if names else []:
        if card.tdp_w is not None and caps[card.name] > card.tdp_w / card.dies:
            each = f", each of its {card.dies} GPUs for {card.tdp_w / card.dies:g} W"
            raise UserError(
                f"{caps[card.name]:g} W are too much for a {card.product}",
                f"it is made for {card.tdp_w} W{each if card.dies > 1 else ''}",
            )


def _spared(cards: list[Gpu], anyway: bool) -> list[Gpu]:
    """The cards, each once, without those that are better left alone.

    Raises:
        UserError: none is left.
    """
    from legacy_cuda.monitor import units

    found = list({card.name: card for card in cards}.values())
    kept = [card for card in found if anyway or not units.is_kepler(card)]
    why = "setting a power limit was reported to halt a machine with a K80"
    for card in found:
        if units.is_kepler(card):
            done = "gets a limit" if anyway else "is left out"
            print(f"{card.name} {done}: {why}", file=sys.stderr)
    if not kept:
        raise UserError(
            "there is no card to limit",
            why if found else "no card without a fan was found or named",
            "--anyway insists" if found else "name cards with --gpu",
        )
    return kept


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (host and re.fullmatch("[0-9]{1,5}", port) and int(port) <= _LAST_PORT):
        raise UserError(
            f"{text} is not an address to listen at",
            next_step=f"name a host and a port: 127.0.0.1:{PORT}, or [::1]:{PORT}",
        )
    return host, int(port)


def _power_caps(texts: list[str]) -> dict[str, float]:
    """Watts by a card's name, "" for all others."""
    caps = {}
    for text in texts:
        name, equals, watts = text.rpartition("=")
        try:
            value = float(watts)
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf") or (equals and not name):
            raise UserError(
                f"{text} is not a power limit", next_step="write p40=180, or 180 for every card"
            )
        caps[output.read_gpus([name])[0].name if name else ""] = value
    return caps


def _until_stopped(stop: threading.Event) -> None:
    """End cleanly on SIGTERM and SIGINT."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())


def _engines(texts: list[str]) -> list[Engine]:
    from legacy_cuda.monitor.engines import KINDS, Engine

    found = []
    for text in texts:
        kind, _, url = text.partition("=")
        address = re.fullmatch(r"http://(?:\[[0-9a-fA-F:.]+\]|[^/\s\[\]@?#:]+):([0-9]{1,5})/?", url)
        if kind not in KINDS or address is None or int(address[1]) > _LAST_PORT:
            raise UserError(
                f"{text} is not an engine to ask",
                f"known are {', '.join(KINDS)}",
                "write llama-server=http://127.0.0.1:8080",
            )
        found.append(Engine(kind, url.rstrip("/")))
    return found


def _serve(
    host: str, port: int, interval: float, caps: dict[str, float], engines: list[Engine]
) -> int:
    from legacy_cuda.monitor.sampler import Sampler
    from legacy_cuda.monitor.server import Server

    stop = threading.Event()
    _until_stopped(stop)
    sampler = Sampler(interval, power_caps=caps, engines=engines)
    with Server(host, port, lambda: sampler.page, lambda: sampler.overview) as server:
        sampler.start()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(f"serving {server.url}", flush=True)
        if error := sampler.state.snapshot.error:
            print(f"the driver does not answer yet: {error}", file=sys.stderr)
        while sampler.alive and not stop.wait(_LOOK):
            pass
        server.shutdown()
    if not stop.is_set():
        raise SurroundingsError("no samples are taken any more", "their thread ended by an error")
    sampler.stop()
    return 0


def _log(path: Path, interval: float) -> int:
    from legacy_cuda.monitor.csvlog import Log
    from legacy_cuda.monitor.sampler import Sampler

    stop = threading.Event()
    _until_stopped(stop)
    sampler = Sampler(interval)
    log = Log(path, sys.stdout)
    try:
        _repeat(stop, interval, lambda: log.write(sampler.sample()))
    finally:
        log.close()
        sampler.stop()
    return 0


def _repeat(stop: threading.Event, interval: float, work: Callable[[], None]) -> None:
    due = time.monotonic()
    while not stop.is_set():
        work()
        due = max(due + interval, time.monotonic())
        stop.wait(due - time.monotonic())


def _once(as_json: bool) -> int:
    from legacy_cuda.monitor import overview
    from legacy_cuda.monitor.sampler import Sampler

    sampler = Sampler()
    state = sampler.sample()
    sampler.stop()
    snapshot = state.snapshot
    if snapshot.error:
        raise SurroundingsError(
            "the NVIDIA driver does not answer",
            str(snapshot.error),
            _NEXT_STEPS.get(snapshot.error.error, "look for lines with NVRM in the kernel log"),
        )
    if not state.devices:
        raise SurroundingsError(
            "the NVIDIA driver lists no GPU",
            overview.versions(snapshot),
            "lspci shows whether the card is there; look for lines with NVRM in the kernel log",
        )
    if as_json:
        output.document("monitor", _document(state))
    else:
        print(overview.versions(snapshot))
        rows = [overview.HEADING, *map(overview.row, state.devices)]
        print(output.table(rows, lambda cell: ()))
        for device in state.devices:
            if device.failure:
                print(output.paint(f"GPU {device.index}: {device.failure}", "red"))
    return 1 if any(device.failure for device in state.devices) else 0


def _document(state: State) -> dict[str, Any]:
    from dataclasses import asdict

    from legacy_cuda.monitor.metrics import card

    snapshot = state.snapshot
    return {
        "time": snapshot.time,
        "driver_version": snapshot.driver_version,
        "cuda_version": snapshot.cuda_version,
        "devices": [{"card": card(device), **asdict(device)} for device in state.devices],
    }
