"""``legacy-cuda gpus``: the cards of the catalog."""

from __future__ import annotations

import argparse
from typing import Any

from legacy_cuda import catalog
from legacy_cuda.catalog import Gpu
from legacy_cuda.cli import output


def add(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "gpus",
        help="list the GPUs of the catalog",
        description="List the GPUs of the catalog, all of them or those named.",
        epilog="examples:\n  legacy-cuda gpus\n  legacy-cuda gpus p40 10de:102d --json",
        formatter_class=output.HelpFormatter,
    )
    parser.add_argument("gpu", nargs="*", help="name, alias, product name or PCI id")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.set_defaults(run=run)


def _document(gpu: Gpu) -> dict[str, Any]:
    facts = gpu.facts
    return {
        "name": gpu.name,
        "product": gpu.product,
        "aliases": list(gpu.aliases),
        "pci_ids": list(gpu.pci_ids),
        "capability": str(gpu.capability),
        "architecture": facts.architecture,
        "chip": gpu.chip,
        "legacy": gpu.legacy,
        "dies": gpu.dies,
        "memory_mib": gpu.memory_mib,
        "usable_mib_ecc_on": gpu.usable_mib_ecc_on,
        "usable_mib_ecc_off": gpu.usable_mib_ecc_off,
        "bandwidth_gb_s": gpu.bandwidth_gb_s,
        "tdp_w": gpu.tdp_w,
        "cooling": gpu.cooling,
        "fp32_tflops": gpu.fp32_tflops,
        "fp16_fp32_ratio": facts.fp16_fp32_ratio,
        "dp4a": facts.dp4a,
        "source": gpu.source,
    }


def run(arguments: argparse.Namespace) -> int:
    """Print the cards."""
    chosen = output.read_gpus(arguments.gpu) if arguments.gpu else list(catalog.gpus())
    if arguments.json:
        output.document("gpus", {"gpus": [_document(gpu) for gpu in chosen]})
        return 0
    rows: list[list[str]] = [
        [
            "name",
            "product",
            "capability",
            "memory",
            "GB/s",
            "W",
            "cooling",
            "fp16:fp32",
            "dp4a",
            "PCI id",
        ]
    ]
    for gpu in chosen:
        facts = gpu.facts
        dies = f"{gpu.dies} x " if gpu.dies > 1 else ""
        rows.append(
            [
                gpu.name,
                gpu.product,
                f"{gpu.capability} {facts.architecture}",
                f"{dies}{gpu.memory_mib} MiB",
                f"{gpu.bandwidth_gb_s:.0f}" if gpu.bandwidth_gb_s else "",
                str(gpu.tdp_w or ""),
                gpu.cooling or "",
                facts.fp16_fp32_ratio or "",
                "yes" if facts.dp4a else "no",
                gpu.pci_ids[0],
            ]
        )
    print(output.table(rows, lambda cell: ()))
    return 0
