"""What llama.cpp takes for many models, settings and GPUs, recorded for the planner's tests.

    python -m tests.llama.placements --llama VENV --sources VENDOR --work FOLDER > FILE
    python -m tests.llama.placements --compare tests/unit/placements.json
    legacy-cuda replay --capability 6.1 --libraries LIB -- \\
        python -m tests.llama.placements --gpu 6.1 --work FOLDER > FILE

Without GPUs: ``standin.cpp`` is compiled and takes the place of llama.cpp's library for CUDA. Its
devices answer what CUDA's do (memory, alignment, what they compute and what they take over from the
host) and compute nothing, so llama.cpp decides everything that a plan foretells as it would on the
cards, and logs it. Cases without devices run on the CPU as it is.

``VENV`` has llama-cpp-python as built here, ``VENDOR`` is the folder vendor/llama.cpp of its sdist.
With ``--gpu`` the GPU at hand is used, one of that capability or one that replays it, by the
llama-cpp-python of this Python: the cases of one GPU alone.
Needs: gguf, numpy, g++ (not for ``--gpu``), and about ten minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

P4000, PAIR = "P4000:61:7999", "P4000:61:7999,GTX 1060:61:5958"
K80, V100 = "K80:37:11241,K80:37:11241", "V100:70:15900"
TINY = {
    "tiny-llama": "F16", "tiny-llama-tied": "Q8_0", "tiny-llama-wide": "Q4_K_M",
    "tiny-mixtral": "Q4_K_M", "tiny-qwen2": "Q5_K_M", "tiny-qwen3": "Q6_K",
    "tiny-qwen3moe": "Q4_0", "tiny-gemma2": "Q8_0", "tiny-gemma3": "Q3_K_M",
    "tiny-gpt-oss": "MXFP4", "tiny-phi3": "Q2_K", "tiny-phi4": "IQ4_XS",
}  # fmt: skip
CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("", {}),
    ("", {"flash": False}),
    (P4000, {}),
    (P4000, {"flash": False}),
    (P4000, {"keys": "Q8_0", "values": "Q8_0"}),
    (P4000, {"keys": "Q4_0", "values": "Q4_0", "context": 2000, "batch": 256}),
    (P4000, {"layers": 4}),
    (PAIR, {}),
    (PAIR, {"context": 2048, "parallel": 4}),
    (PAIR, {"context": 2048, "parallel": 4, "unified": True, "flash": False}),
    (PAIR, {"split": [1, 1], "all_logits": True}),
    (K80, {}),
)
LARGE: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("hermes-3-8b:Q5_K_M", PAIR, {"split": [1, 1], "all_logits": True}),
    ("hermes-3-8b:Q5_K_M", PAIR, {"context": 8192, "parallel": 4}),
    ("hermes-3-8b:Q5_K_M", V100, {"context": 32768, "keys": "Q8_0", "values": "Q8_0"}),
    ("llama-2-7b:Q4_K_M", "P4:61:7491", {}),
    ("deepseek-r1-32b:Q4_K_M", "P40:61:22799", {}),
    ("gpt-oss-20b:MXFP4", "P100:60:16160", {"context": 16384}),
    ("gemma-3-12b:Q4_K_M", "P40:61:22799", {"context": 16384}),
    ("qwen3-30b-a3b:Q4_K_M", K80, {}),
)


def cases() -> list[tuple[str, str, dict[str, Any]]]:
    """Model, devices and settings of every case."""
    small = [(f"{name}:{mix}", *case) for name, mix in TINY.items() for case in CASES]
    return [*small, *LARGE]


def settings_of(case: dict[str, Any]) -> Any:
    """The planner's settings of a case."""
    from legacy_cuda.catalog.models import find_format
    from legacy_cuda.planner.placement import Settings

    given = dict(case)
    for what in ("keys", "values"):
        if what in given:
            given[what] = find_format(given[what])
    if "split" in given:
        given["split"] = tuple(float(share) for share in given["split"])
    return Settings(**given)


def arguments_of(case: dict[str, Any]) -> list[str]:
    """The same as arguments of ``memory.py``."""
    settings = settings_of(case)
    found = [
        f"--cells={settings.total}", f"--sequences={settings.parallel}",
        f"--keys={settings.keys.number}", f"--values={settings.values.number}",
        f"--batch={settings.batch}",
    ]  # fmt: skip
    if settings.flash is not None:
        found.append(f"--flash={int(settings.flash)}")
    if settings.layers is not None:
        found.append(f"--layers={settings.layers}")
    if settings.split is not None:
        found.append(f"--split={','.join(map(str, settings.split))}")
    if settings.all_logits:
        found.append("--outputs=2048")
    return [*found, *(["--unified"] if settings.unified else [])]


def libraries(llama: Path, sources: Path, work: Path) -> Path:
    """llama.cpp's libraries in a folder, the stand-in in the place of CUDA's."""
    (found,) = llama.glob("lib/python3*/site-packages/llama_cpp/lib")
    place = work / "lib"
    place.mkdir(parents=True, exist_ok=True)
    for path in found.glob("*.so"):
        if path.name != "libggml-cuda.so":
            shutil.copy2(path, place / path.name)
    ggml = sources / "ggml"
    subprocess.run(
        ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-fvisibility=hidden",
         f"-I{ggml / 'include'}", f"-I{ggml / 'src'}", str(HERE / "standin.cpp"),
         "-o", str(place / "libggml-cuda.so"), f"-L{place}", "-lggml-base",
         "-Wl,-rpath,$ORIGIN"],
        check=True,
    )  # fmt: skip
    return place


def on_one_gpu(capability: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Every case with the settings that one GPU can have; of its memory nothing depends on."""
    device = f"GPU:{capability.replace('.', '')}:100000"
    found = [
        (name, device, {key: value for key, value in case.items() if key != "split"})
        for name, devices, case in cases()
        if devices
    ]
    return [row for at, row in enumerate(found) if row not in found[:at]]


def file_of(name: str, work: Path) -> Path:
    """The file of a model, written where it is not there yet."""
    path = work / f"{name.replace(':', '-')}.gguf"
    if not path.exists():
        from tests.llama import shapes

        part = path.with_suffix(".part")  # a run that is killed leaves no file cut off
        shapes.write(*shapes.find(name), part)
        part.replace(path)
    return path


def record(
    asked: list[tuple[str, str, dict[str, Any]]],
    python: Path,
    variables: dict[str, str],
    work: Path,
    jobs: int,
) -> Iterator[dict[str, Any]]:
    """Measure the cases, some at a time, each by that Python with those variables."""

    def measure(asked_for: tuple[str, str, dict[str, Any]]) -> dict[str, Any]:
        name, devices, case = asked_for
        done = subprocess.run(
            [str(python), str(HERE / "memory.py"), str(file_of(name, work)), *arguments_of(case)],
            env={**variables, "STANDIN_DEVICES": devices},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"{name} on {devices} with {case}: {done.stderr[-2000:]}")
        print(f"{name} {devices} {case}\n{done.stderr}", file=sys.stderr, flush=True)
        return {
            "model": name, "devices": devices, "settings": case, "mib": json.loads(done.stdout)
        }  # fmt: skip

    for name in dict.fromkeys(name for name, *_ in asked):
        file_of(name, work)
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(measure, asked)


def compare(path: Path) -> int:
    """Print how far the planner is from what was recorded, by model, and beside it how far the
    usual rule is for what GPUs take together: the size of the file and of the cache."""
    from tests.unit.placements import MIB, Recorded, error, foretold, planned_model

    worst: dict[tuple[str, str], float] = {}
    rule: dict[str, list[float]] = {}
    count = 0
    for case in json.loads(path.read_text()):
        recorded = Recorded(**case)
        for kind, _, said, mine in foretold(recorded):
            count += 1
            key = (recorded.model, kind)
            worst[key] = max(worst.get(key, 0.0), abs(error(mine, said)))
        if recorded.devices and "layers" not in recorded.settings:
            taken = sum(
                size
                for kind in ("model", "KV", "compute")
                for backend, size in recorded.mib[kind].items()
                if backend.startswith("CUDA") and backend != "CUDA_Host"
            )
            kept = sum(recorded.mib["KV"].values())
            thumb = planned_model(recorded).bytes / MIB + kept
            rule.setdefault(recorded.model, []).append(100 * (thumb / taken - 1))
    print(f"{count} buffers; the largest error of each model in per cent, and that of file + cache")
    print(f"{'model':<24} {'weights':>8} {'KV':>8} {'compute':>8}   file + cache")
    for model in dict.fromkeys(model for model, _ in worst):
        row = (worst.get((model, kind), 0.0) for kind in ("model", "KV", "compute"))
        ends = rule.get(model, [0.0])
        print(
            f"{model:<24} "
            + " ".join(f"{value:8.2f}" for value in row)
            + f"   {min(ends):+.0f} to {max(ends):+.0f}"
        )
    return 0


def main() -> int:
    """Record or compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--llama", type=Path)
    parser.add_argument("--sources", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--gpu", metavar="CAPABILITY", help="the GPU at hand, no stand-ins")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--compare", type=Path)
    options = parser.parse_args()
    if options.compare:
        return compare(options.compare)
    options.work.mkdir(parents=True, exist_ok=True)
    if options.gpu:
        asked, python, variables = on_one_gpu(options.gpu), Path(sys.executable), dict(os.environ)
    else:
        asked, python = cases(), options.llama / "bin" / "python"
        variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        place = libraries(options.llama, options.sources, options.work)
        variables["LLAMA_CPP_LIB_PATH"] = str(place)
    print("[", end="")
    for at, row in enumerate(record(asked, python, variables, options.work, options.jobs)):
        print(("" if at == 0 else ",\n ") + json.dumps(row), end="", flush=True)
    print("]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
