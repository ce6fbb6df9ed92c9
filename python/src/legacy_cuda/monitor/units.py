"""Services of systemd beside an engine: the exporter, power limits, the thermal guard, and what
loads nvidia_uvm anew when the machine wakes up. Pure but for the scripts' text.

A K80 gets no power limit here unless somebody insists: setting one was reported to halt the host
(doctor rule D12), so Kepler cards as a whole are left out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from legacy_cuda.catalog import Gpu
from legacy_cuda.engines.unit import quoted, quoted_path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCRIPTS = Path(__file__).with_name("scripts")
KINDS = ("exporter", "power-cap", "thermal-guard", "resume")
SMI = "/usr/bin/nvidia-smi"
_PERSISTENCE = "nvidia-persistenced.service"
_SLEEPS = [
    "suspend.target",
    "hibernate.target",
    "hybrid-sleep.target",
    "suspend-then-hibernate.target",
]
_SHELL = "/bin/bash -o errexit -o nounset -o pipefail -c"


def is_kepler(card: Gpu) -> bool:
    """Whether it is one that gets no limit unless somebody insists."""
    return card.facts.architecture == "Kepler"


def limits(watts: Mapping[str, float], cards: Iterable[Gpu]) -> list[str]:
    """Power limits as the script reads them, ``10de:1b38=180``, for each PCI id of the cards."""
    return [f"{pci}={watts[card.name]:g}" for card in cards for pci in card.pci_ids]


def guarded(degrees: float, watts: Mapping[str, float], cards: Iterable[Gpu]) -> list[str]:
    """Temperatures as the script reads them, with a limit that was chosen: ``10de:1b38=85,180``."""
    return [
        f"{pci}={degrees:g}" + (f",{watts[card.name]:g}" if card.name in watts else "")
        for card in cards
        for pci in card.pci_ids
    ]


def _lines(settings: Mapping[str, object]) -> list[str]:
    lines = []
    for key, value in settings.items():
        for item in value if isinstance(value, list) else [value]:
            text = ("no", "yes")[item] if isinstance(item, bool) else str(item)
            lines.append(f"{key}={text}")
    return lines


def _unit(
    title: str,
    command: str,
    service: Mapping[str, object],
    after: Sequence[str],
    wanted_by: Sequence[str],
    readable: Sequence[Path] = (),
    wants: Sequence[str] = (),
) -> str:
    """A service; ``service`` is set over what scripts/hardening.toml has.

    Raises:
        ValueError: a path has a line break in it.
    """
    hardening = tomllib.loads((SCRIPTS / "hardening.toml").read_text(encoding="utf-8"))
    # homes are empty but for what it reads
    hardening["ProtectHome"] = "tmpfs"
    found = {"ExecStart": f":{command}", **hardening, **service}
    found["BindReadOnlyPaths"] = [quoted_path(path) for path in readable]
    lines = ["[Unit]", f"Description={title}", f"After={' '.join(after)}"]
    lines += [f"Wants={name}" for name in wants]
    lines += ["", "[Service]", *_lines(found), "", "[Install]", f"WantedBy={' '.join(wanted_by)}"]
    return "\n".join(lines) + "\n"


def exporter(command: Sequence[str], readable: Sequence[Path], loopback: bool) -> str:
    """The monitor as a service: without a privilege, on the network only where it listens."""
    service: dict[str, object] = {
        "Type": "exec", "DynamicUser": True, "Restart": "always", "RestartSec": 10,
        "PrivateNetwork": False, "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
        "IPAddressAllow": "localhost", "MemoryDenyWriteExecute": False,
        "ProtectProc": "default",  # the names of the processes that use the cards
    }  # fmt: skip
    if not loopback:
        service["IPAddressDeny"] = ""
    return _unit(
        "GPU metrics for Prometheus", _words(command), service, ["network.target"],
        ["multi-user.target"], readable,
    )  # fmt: skip


def _words(command: Iterable[str]) -> str:
    return " ".join(map(quoted, command))


def _script(name: str, arguments: Sequence[str]) -> str:
    """A command with the text of a script in it, without its comments: what root runs is then in
    the unit, and not in a file that somebody else can write. systemd reads ``\\n`` as a line break,
    and goes on in the next line behind a backslash.

    Raises:
        ValueError: an argument has a line break in it.
    """
    text = (SCRIPTS / f"{name}.sh").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    escaped = [
        line.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + "\\n\\\n"
        for line in lines
    ]
    return f'{_SHELL} "\\\n{"".join(escaped)}" {_words([name, *arguments])}'


def power_cap(arguments: Sequence[str]) -> str:
    """Sets the limits once at every start: :func:`limits`."""
    service = {"Type": "oneshot", "RemainAfterExit": True, "CapabilityBoundingSet": "CAP_SYS_ADMIN"}
    return _unit(
        "Power limits of NVIDIA cards", _script("power-limits", [SMI, *arguments]), service,
        [_PERSISTENCE], ["multi-user.target"], wants=[_PERSISTENCE],
    )  # fmt: skip


def thermal_guard(arguments: Sequence[str]) -> str:
    """Lowers the limit of a card that is too hot: :func:`guarded`."""
    service = {"CapabilityBoundingSet": "CAP_SYS_ADMIN", "Restart": "always", "RestartSec": 10}
    return _unit(
        "Power limits of NVIDIA cards that are too hot",
        _script("thermal-guard", [SMI, *arguments]), service,
        [_PERSISTENCE, "legacy-cuda-power-cap.service"], ["multi-user.target"],
    )  # fmt: skip


def resume(units: Sequence[str]) -> str:
    """Loads nvidia_uvm anew after a suspend, the units that use it stopped meanwhile."""
    service = {
        "Type": "oneshot", "TimeoutStartSec": 120, "CapabilityBoundingSet": "CAP_SYS_MODULE",
        "DeviceAllow": [], "ProtectKernelModules": False,
        "SystemCallFilter": ["@system-service @module", "~@resources"],
    }  # fmt: skip
    return _unit(
        "Load nvidia_uvm anew after a suspend", _script("resume", units), service,
        [*_SLEEPS, "nvidia-resume.service"], _SLEEPS,
    )  # fmt: skip
