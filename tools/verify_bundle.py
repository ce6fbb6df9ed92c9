"""Put together what ``legacy-cuda verify`` needs on a machine with a GPU and without a network.

    python tools/verify_bundle.py FOLDER --probe WHEEL [--python 3.12] [--capability 9.0]

FOLDER then holds this package, the libraries it imports (for that Python), the compiled probe, the
NVRTC wheels for the old capabilities and that of the GPU, and ``run.sh``: under 64 MiB. There,
``sh FOLDER/run.sh`` verifies the GPUs with the compiled probe and with NVRTC, replays the old
capabilities, and leaves one JSON document for each in ``results``, or in $OUT.

Exit: 0 fine, else that of the program that failed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import zipfile
from pathlib import Path

from legacy_cuda import catalog, fetch
from legacy_cuda.capability import Capability
from legacy_cuda.verify import code

PACKAGE = Path(__file__).parents[1] / "python" / "src" / "legacy_cuda"
REQUIREMENTS = PACKAGE.parents[1] / "requirements.txt"
LIBRARIES = ("isal", "lz4", "nvidia-ml-py", "packaging", "zstandard")  # those that verify imports

RUN = """#!/bin/sh
# Verify the GPUs of this machine; see tools/verify_bundle.py of legacy-cuda. Exit: 0 if all went.
here=$(cd "$(dirname "$0")" && pwd)
out=${{OUT:-results}}
mkdir -p "$out"
[ -d "$here/site" ] || python3 -m zipfile -e "$here/site.zip" "$here/site" || exit 1
export PYTHONPATH="$here/site" LEGACY_CUDA_CACHE="$here/cache" LEGACY_CUDA_HOME="$here/none"
worst=0
verify() {{
    name=$1; shift
    python3 -m legacy_cuda verify --offline --json "$@" > "$out/$name.json" 2> "$out/$name.txt"
    code=$?
    echo "$name: exit $code"
    [ $code -eq 0 ] || {{ worst=1; head -c 2000 "$out/$name.txt"; }}
}}
probe=$(ls "$here"/*.whl)
verify probe --probe "$probe" --report "$out/probe.html"
verify nvrtc --nvrtc
{replays}
python3 -m legacy_cuda verify --offline --probe "$probe" --memory 1024 --load 1
exit $worst
"""
REPLAY = """verify replay-{0} --probe "$probe" --replay {0} --load 1 --memory 8192
verify replay-nvrtc-{0} --nvrtc --replay {0} --load 1 --memory 1024"""


def main() -> int:
    """Fill the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--probe", type=Path, required=True, help="the wheel of legacy-cuda-probe")
    parser.add_argument("--python", default="3.12", help="the Python of that machine")
    parser.add_argument("--capability", default="9.0", help="that of the GPU there")
    options = parser.parse_args()
    site = options.folder / "site"
    subprocess.run(
        [
            *(fetch.uv_binary(), "pip", "install", "--target", site, "--only-binary", ":all:"),
            *("--python-version", options.python, "--python-platform", "x86_64-manylinux_2_28"),
            *("--no-deps", "--constraint", REQUIREMENTS, *LIBRARIES),
        ],
        check=True,
    )
    shutil.copytree(PACKAGE, site / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.make_archive(str(site), "zip", site)
    shutil.rmtree(site)
    shutil.copy(options.probe, options.folder)
    with zipfile.ZipFile(options.probe) as wheel:
        names = wheel.namelist()
    old = sorted({gpu.capability for gpu in catalog.gpus() if gpu.legacy})
    replays = [item for item in old if f"{code.PACKAGE}/compute_{item.number}.ptx" in names]
    for capability in (*old, Capability.parse(options.capability)):
        locked = code.nvrtc_wheel(capability)
        if locked is not None:
            remote = fetch.Remote(
                locked.package, locked.version, locked.name, locked.sha256, locked.size
            )
            path = fetch.download(remote)
            target = options.folder / "cache" / "wheels" / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    text = RUN.format(replays="\n".join(REPLAY.format(item) for item in replays))
    (options.folder / "run.sh").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
