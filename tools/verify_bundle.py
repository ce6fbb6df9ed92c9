"""Put together what ``doctor``, ``monitor`` and ``verify`` need on a machine with a GPU and without
a network.

    python tools/verify_bundle.py FOLDER --probe WHEEL [--python 3.12] [--capability 9.0]

FOLDER then holds this package, the libraries it imports (for that Python), the compiled probe, the
NVRTC wheels for the old capabilities and that of the GPU, and ``run.sh``: under 60 MB. There,
``sh FOLDER/run.sh`` runs doctor, the monitor, and verify with the compiled probe and with NVRTC,
replays the old capabilities, and leaves eight files in ``results``, or in $OUT: ``all.tar.gz`` has
every document.

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
LIBRARIES = (  # those that these commands import
    *("isal", "lz4", "nvidia-ml-py", "packaging", "prometheus-client", "zstandard"),
)

RUN = """#!/bin/sh
# Look at this machine and verify its GPUs; see tools/verify_bundle.py of legacy-cuda.
# Exit: 0 if all that was verified is right.
here=$(cd "$(dirname "$0")" && pwd)
out=${{OUT:-results}}
limit=${{LIMIT:-480}}    # seconds; what has not begun by then is left out
mkdir -p "$out" && work=$(mktemp -d) || exit 1
[ -d "$here/site" ] || python3 -m zipfile -e "$here/site.zip" "$here/site" || exit 1
export PYTHONPATH="$here/site" LEGACY_CUDA_CACHE="$here/cache" LEGACY_CUDA_HOME="$here/none"
start=$(date +%s)
worst=0
note() {{ echo "$*" | tee -a "$out/summary.txt"; }}
command() {{
    name=$1; shift
    [ $(($(date +%s) - start)) -lt "$limit" ] || {{ note "$name: left out"; worst=1; return 9; }}
    before=$(date +%s%N)
    timeout 240 python3 -m legacy_cuda "$@" > "$work/$name" 2> "$work/$name.err"
    code=$?
    note "$name: exit $code, $((($(date +%s%N) - before) / 1000000)) ms"
    [ ! -s "$work/$name.err" ] || {{ head -c 2000 "$work/$name.err" | tee -a "$out/summary.txt"; }}
    return $code
}}
{{ uname -a; cat /proc/driver/nvidia/version; ls -l /dev/nvidia*; nvidia-smi -q; }} \
    > "$out/machine.txt" 2>&1
command doctor.txt doctor; command doctor.json doctor --json
command bundle.txt doctor --bundle "$out/doctor-bundle.tar.gz"
command monitor.txt monitor --once; command monitor.json monitor --json
python3 -m legacy_cuda monitor --listen 127.0.0.1:19835 > "$work/served.txt" 2>&1 &
monitor=$!
sleep 8
python3 -c 'import sys, urllib.request as u
print(u.urlopen(sys.argv[1], timeout=10).read().decode(), end="")' \
    http://127.0.0.1:19835/metrics > "$out/metrics.txt" 2>&1
kill $monitor
cp "$work/doctor.txt" "$work/doctor.json" "$out"
probe=$(ls "$here"/*.whl)
verify() {{ name=$1; shift; command "$name" verify --offline "$@" || worst=1; }}
verify verify.txt --probe "$probe" --memory 1024 --load 1
verify verify.json --json --probe "$probe" --report "$out/verify.html"
verify nvrtc.json --json --nvrtc
{replays}
python3 -m tarfile -c "$out/all.tar.gz" "$work"
note "all: exit $worst, $(($(date +%s) - start)) s"
exit $worst
"""
REPLAY = """\
verify replay-{0}.json --json --probe "$probe" --replay {0} --load 1 --memory 8192
verify replay-nvrtc-{0}.json --json --nvrtc --replay {0} --load 1 --memory 1024"""


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
