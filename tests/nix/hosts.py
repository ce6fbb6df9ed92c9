"""The machines of the templates, evaluated; as a program, what they come to.

    python -m tests.nix.hosts [TEMPLATE...]

prints the units with their environment and hardening, users, folders, ports and the driver, as
LEGACY_CUDA_NIXPKGS (docs/nix.md) makes them.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.nix import units
from tests.nix.nixrun import ROOT, Nix, Outputs, as_nix, make_inputs, without_store

TEMPLATES = sorted(
    folder.name for folder in (ROOT / "nix" / "templates").iterdir() if folder.is_dir()
)

Host = dict[str, Any]


def evaluate_templates(outputs: Outputs, templates: Sequence[str]) -> dict[str, Host]:
    """What host.nix looks at, of the machine of each template as its own flake makes it."""
    names = " ".join(f'"{name}"' for name in templates)
    found: dict[str, Host] = outputs.evaluate(
        f"""
        let
          host = import {as_nix(Path(__file__).parent / "host.nix")};
          template = name: host (((import (nix + "/templates/${{name}}/flake.nix")).outputs {{
            inherit (flake) nixpkgs;
            legacy-cuda = flake;
          }}).nixosConfigurations.${{name}});
        in
        builtins.listToAttrs (map (name: {{ inherit name; value = template name; }}) [ {names} ])
        """
    )
    return found


def _show(name: str, host: Host, folder: Path) -> None:
    print(f"=== {name}")
    for key in ("kernel", "nvidia", "notes", "tmpfiles", "firewall", "users", "failed", "warnings"):
        print(f"{key}: {host[key]}")
    for service, settings in host["services"].items():
        if settings is not None:
            print(f"services.{service}: {without_store(settings)}")
    for unit, facts in host["units"].items():
        if units.is_started(facts):
            print(f"--- {unit}.service, exposure {units.exposure(facts, unit, folder)}")
            print(without_store(units.render(facts)), end="")


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        outputs = Outputs(Nix(folder / "nix"), make_inputs(folder / "inputs"))
        for template, host in evaluate_templates(outputs, sys.argv[1:] or TEMPLATES).items():
            _show(template, host, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
