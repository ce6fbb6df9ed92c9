"""Units of systemd from what a NixOS configuration says of them, and systemd's judgement."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

# of systemd 254; a unit of NixOS's has them, and an older systemd passes over them
_NEWER = ("RestartMaxDelaySec", "RestartSteps")


def _lines(section: dict[str, Any]) -> list[str]:
    """NixOS's way: a list is a line for each item, a boolean a word."""
    lines = []
    for key, value in section.items():
        for item in value if isinstance(value, list) else [value]:
            text = str(item).lower() if isinstance(item, bool) else str(item)
            lines.append(f"{key}={text}")
    return lines


def is_started(unit: dict[str, Any]) -> bool:
    """Whether a unit has something to run: a command, or a script that NixOS makes one of. Of units
    that NixOS's own modules bring, the stub has only what ours add to them."""
    return "ExecStart" in unit["serviceConfig"] or bool(unit["script"])


def render(unit: dict[str, Any], programs: bool = True) -> str:
    """The unit file. Without ``programs``, all of them are one that is there."""
    service = dict(unit["serviceConfig"])
    if unit["script"]:
        service.setdefault("ExecStart", "/bin/sh")
    if not programs:
        for key in service:
            if key.startswith("Exec"):
                commands = service[key] if isinstance(service[key], list) else [service[key]]
                service[key] = [re.sub(r"^([-+!@:]*)\S+", r"\1/bin/true", one) for one in commands]
    environment = [f'Environment="{key}={value}"' for key, value in unit["environment"].items()]
    head = {
        "Description": unit["description"],
        "After": " ".join(unit["after"]),
        "Requires": " ".join(unit["requires"]),
    }
    return "\n".join(
        [
            "[Unit]",
            *_lines({key: text for key, text in head.items() if text}),
            "[Service]",
            *environment,
            *_lines(service),
            "",
        ]
    )


def analyze(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments],
        env={
            "PATH": os.environ["PATH"],
            "SYSTEMD_UNIT_PATH": f"{folder}:",
            "SYSTEMD_LOG_LEVEL": "warning",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )


def verify(units: dict[str, dict[str, Any]], folder: Path) -> str:
    """What ``systemd-analyze verify`` has to say of the units, in one run; "" where nothing."""
    files = []
    for name, unit in units.items():
        file = folder / f"{name}.service"
        file.write_text(render(unit, programs=False))
        files.append(str(file))
    done = analyze("verify", "--man=no", *files, folder=folder)
    ours = [line for line in done.stderr.splitlines() if any(name in line for name in units)]
    said = [line for line in ours if not any(f"key '{key}'" in line for key in _NEWER)]
    return "\n".join(said) or ("" if done.returncode == 0 else done.stderr)


def exposure(unit: dict[str, Any], name: str, folder: Path) -> float:
    """The score of ``systemd-analyze security``, from 0.0 (nothing is left open) to 10.0."""
    file = folder / f"{name}.service"
    file.write_text(render(unit, programs=False))
    done = analyze("security", "--offline=true", str(file), folder=folder)
    found = re.search(r"Overall exposure level for \S+: (\d+\.\d+)", done.stdout)
    assert found, done.stdout + done.stderr
    return float(found[1])
