"""Replay without a GPU: hooks in a made-up Triton and PyTorch, a driver of one page of C."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import legacy_cuda
from legacy_cuda import catalog
from legacy_cuda.capability import Capability
from legacy_cuda.cli import replay as replay_command
from legacy_cuda.errors import SurroundingsError, UserError
from legacy_cuda.replay import command, gpu, report
from legacy_cuda.replay.inside import assemble, torch_hooks
from legacy_cuda.replay.inside.imports import PostImport
from legacy_cuda.replay.inside.record import Record
from legacy_cuda.replay.inside.settings import Settings

H200 = gpu.VisibleGpu("NVIDIA H200", (9, 0))
PTXAS = """#!/bin/sh
# says what ptxas says, and makes a cubin that tells for which target
[ "$1" = --version ] && { echo "Cuda compilation tools, release 12.8, V12.8.93"; exit 0; }
for word; do
  case $word in --gpu-name=*) target=${word#--gpu-name=};; *.ptx) source=$word;; esac
  [ "$last" = -o ] && made=$word
  last=$word
done
if grep -q "too new for $target" "$source"; then
  echo "ptxas $source, line 7; error   : Feature '.acq_rel' requires .target sm_70" >&2; exit 255
fi
echo "ptxas info : Used 23 registers, 8 bytes smem, 352 bytes cmem[0]" >&2
echo "    16 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads" >&2
{ echo "$target:"; cat "$source"; } > "$made"
"""
# The parts of Triton that are hooked, in their real places and with their real names.
TRITON = {
    "__init__.py": '__version__ = "3.6.0"\nfrom . import runtime, compiler\n',
    "runtime/__init__.py": "from .driver import driver\n",
    "runtime/driver.py": """
        from ..backends import backends
        def _create_driver():
            return backends["nvidia"].driver()
        class DriverConfig:
            def __init__(self):
                self._default = self._active = None
            @property
            def active(self):
                self._active = self._active or _create_driver()
                return self._active
        driver = DriverConfig()
        """,
    "backends/__init__.py": """
        import importlib
        from types import SimpleNamespace
        from . import compiler
        found = importlib.import_module("triton.backends.nvidia.compiler").CUDABackend
        driver = importlib.import_module("triton.backends.nvidia.driver").CudaDriver
        backends = {"nvidia": SimpleNamespace(compiler=found, driver=driver)}
        """,
    "backends/compiler.py": """
        from collections import namedtuple
        GPUTarget = namedtuple("GPUTarget", "backend arch warp_size")
        """,
    "backends/nvidia/__init__.py": "",
    "backends/nvidia/compiler.py": """
        import functools, os, subprocess, tempfile
        class CUDABackend:
            def __init__(self, target):
                self.target = target
            def make_llir(self, src, metadata, options, capability):
                if "too large" in src:
                    raise MemoryError("too large for a block")
                return src
            def make_ptx(self, src, metadata, opt, capability):
                return src
            def make_cubin(self, src, metadata, opt, capability):
                ptxas = os.path.join(os.path.dirname(__file__), "bin", "ptxas")
                with tempfile.NamedTemporaryFile(mode="w", suffix=".ptx") as source, \\
                        tempfile.NamedTemporaryFile(mode="r", suffix=".log") as log:
                    source.write(src); source.flush()
                    made = source.name + ".o"
                    try:
                        subprocess.run([ptxas, "-v", f"--gpu-name=sm_{capability}", source.name,
                                        "-o", made], check=True, stderr=log)
                    except subprocess.CalledProcessError:
                        raise RuntimeError("PTXAS error: " + open(log.name).read())
                    data = open(made, "rb").read()
                    os.remove(made)
                return data
            @functools.lru_cache()
            def hash(self):
                return f"12.8-{self.target.arch}"
        """,
    "backends/nvidia/driver.py": """
        from ..compiler import GPUTarget
        class CudaUtils:
            def __init__(self):
                self.get_device_properties = lambda device: {"max_shared_mem": 232448, "n": device}
        class CudaDriver:
            def __init__(self):
                self.utils = CudaUtils()
            def get_current_target(self):
                return GPUTarget("cuda", 90, 32)
        """,
    "compiler/__init__.py": "from .compiler import CompiledKernel\n",
    "compiler/compiler.py": """
        from collections import namedtuple
        class CompiledKernel:
            def __init__(self, metadata):
                self.metadata = namedtuple("KernelMetadata", sorted(metadata))(**metadata)
            def _init_handles(self):
                n_max_threads = 1024
        """,
}
TORCH = {
    "__init__.py": '__version__ = "2.11.0+cu130"\nfrom . import cuda\n',
    "cuda/__init__.py": """
        from types import SimpleNamespace
        def is_available():
            return True
        def get_device_properties(device=None):
            return SimpleNamespace(name="NVIDIA H200", major=9, minor=0, multi_processor_count=132,
                                   shared_memory_per_block_optin=232448)
        def get_device_capability(device=None):
            raise AssertionError("the properties are asked")
        get_device_name = get_device_capability
        def get_arch_list():
            return ["sm_75", "sm_90"]
        """,
    "utils/__init__.py": "",
    "utils/_triton.py": """
        import torch
        def has_triton_package():
            return True
        def has_triton():
            return torch.cuda.get_device_properties().major >= 7
        """,
    "_dynamo/__init__.py": "",
    "_dynamo/device_interface.py": """
        import torch
        class CudaInterface:
            @staticmethod
            def is_triton_capable(device=None):
                return torch.cuda.get_device_properties(device).major >= 7
        """,
}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the made-up Triton and PyTorch."""
    folder = tmp_path_factory.mktemp("packages")
    for package, files in (("triton", TRITON), ("torch", TORCH)):
        for name, text in files.items():
            path = folder / package / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
    ptxas = folder / "triton/backends/nvidia/bin/ptxas"
    ptxas.parent.mkdir()
    ptxas.write_text(PTXAS)
    ptxas.chmod(0o755)
    return folder


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("LEGACY_CUDA_REPLAY")]:
        monkeypatch.delenv(name)
    for name in ("TRITON_PTXAS_PATH", "TRITON_CACHE_DIR", "PYTEST_PLUGINS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LEGACY_CUDA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def on_h200(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "visible", lambda: [H200])


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    replay_command.add(parser.add_subparsers())
    return parser.parse_args(["replay", *words])


def replay(
    packages: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    program: str,
    *words: str,
    capability: str = "6.1",
) -> tuple[int, dict[str, Any], str]:
    """Run a program through the subcommand: its exit code, the report, and what it wrote to
    ``out`` in its folder."""
    monkeypatch.setenv("PYTHONPATH", str(packages))
    script, out, document = tmp_path / "program.py", tmp_path / "out", tmp_path / "report.json"
    script.write_text(f"out = open({str(out)!r}, 'w')\n" + textwrap.dedent(program))
    code = replay_command.run(
        options("--capability", capability, "--report", str(document), *words, "--",
                sys.executable, str(script))
    )  # fmt: skip
    return code, json.loads(document.read_text()), out.read_text()


COMPILE = """
    import sys, triton
    from types import SimpleNamespace
    from triton.backends import backends
    from triton.compiler import CompiledKernel
    target = triton.runtime.driver.active.get_current_target()
    backend = backends["nvidia"].compiler(target)
    metadata = {"name": "add", "shared": 512, "num_warps": 4}
    opt = SimpleNamespace(enable_fp_fusion=False, num_warps=4, ptx_options=None)
    cubin = backend.make_cubin(PTX, metadata, opt, target.arch)
    CompiledKernel(metadata)
    print(target, backend.hash(), cubin.decode(), sep="|", file=out)
"""


# ------------------------------------------------------------------------------ settings


def test_settings_survive_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for settings in (
        Settings((6, 1), (9, 0), "NVIDIA H200", 49152, 49152, "/r", True, "p40"),
        Settings((3, 7), None, "", 1, 2),
    ):
        for name, value in settings.environment().items():
            monkeypatch.setenv(name, value)
        assert Settings.from_environment() == settings


@pytest.mark.parametrize("capability", ["3.5", "3.7", "5.0", "5.2", "6.0", "6.1", "7.0"])
def test_limits_are_the_catalogs(capability: str, on_h200: None, tmp_path: Path) -> None:
    settings = command.prepare(capability, False, False, tmp_path / "record")
    facts = catalog.capabilities()[Capability.parse(capability)]
    assert settings.shared == facts.shared_memory_per_block_kib * 1024 == 49152
    assert settings.shared_optin == (98304 if capability == "7.0" else 49152)
    assert settings.words == f"replayed at {capability} on NVIDIA H200"
    assert settings.key == f"replayed-{capability}-on-9.0"
    if capability != "5.0":
        assert catalog.find_gpu(settings.card).capability == Capability.parse(capability)


@pytest.mark.parametrize("text", ["6", "6.1.0", "sm_61", "9.9", "", "-6.1"])
def test_unknown_capabilities_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no capability") as caught:
        command.prepare(text, True, False, tmp_path)
    assert caught.value.exit_code == 2 and "6.1" in caught.value.next_step


def test_newer_capabilities_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "visible", lambda: [gpu.VisibleGpu("Tesla P40", (6, 1))])
    with pytest.raises(UserError, match=r"7\.0 cannot be replayed on Tesla P40") as caught:
        command.prepare("7.0", False, False, tmp_path)
    assert caught.value.exit_code == 2
    assert command.prepare("6.1", False, False, tmp_path).gpu == (6, 1)


def test_several_capabilities_want_a_choice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu, "visible", lambda: [gpu.VisibleGpu("Tesla P40", (6, 1)), H200])
    with pytest.raises(UserError, match="several capabilities") as caught:
        command.prepare("6.1", False, False, tmp_path)
    assert "CUDA_VISIBLE_DEVICES" in caught.value.next_step
    assert "1: NVIDIA H200 (9.0)" in caught.value.why


def test_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def none() -> list[gpu.VisibleGpu]:
        raise gpu.NoGpuError("no NVIDIA driver here")

    monkeypatch.setattr(gpu, "visible", none)
    with pytest.raises(SurroundingsError, match="no GPU") as caught:
        command.prepare("6.1", False, False, tmp_path)
    assert caught.value.exit_code == 3 and "--compile-only" in caught.value.next_step
    assert command.prepare("6.1", True, False, tmp_path).compile_only


def test_environment_keeps_what_was_there(tmp_path: Path) -> None:
    settings = command.prepare("6.1", True, False, tmp_path / "record")
    made = command.environment(settings, {"PYTHONPATH": "/mine", "TRITON_CACHE_DIR": "/cache"})
    assert made["PYTHONPATH"] == f"{command.SITE}{os.pathsep}/mine"
    assert "TRITON_CACHE_DIR" not in made
    assert "replayed-6.1-compile-only" in made["TORCHINDUCTOR_CACHE_DIR"]


# -------------------------------------------------------------------------- the driver


DRIVER = """
#include <string.h>
int cuInit(unsigned flags) { return ERROR; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int size, int device) {
  strncpy(name, device ? "NVIDIA H200" : "Tesla P40", size); return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 75 ? (device ? 9 : 6) : (device ? 0 : 1); return 0;
}
"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("skipped: no C compiler here to make a driver")
    source = tmp_path / "driver.c"
    source.write_text(DRIVER)

    def make(error: int) -> None:
        subprocess.run([compiler, "-shared", "-fPIC", f"-DERROR={error}", source,
                        "-o", tmp_path / "libcuda.so.1"], check=True)  # fmt: skip
        monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))

    yield make


def test_gpus_of_a_driver(driver: Any) -> None:
    driver(0)
    assert gpu.visible() == [gpu.VisibleGpu("Tesla P40", (6, 1)), H200]


def test_a_driver_without_gpus(driver: Any) -> None:
    driver(100)
    with pytest.raises(gpu.NoGpuError, match="shows no GPU \\(error 100\\)"):
        gpu.visible()


# -------------------------------------------------------------------------- in the process


def test_kernels_are_assembled_for_both(
    packages: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, on_h200: None
) -> None:
    program = COMPILE.replace("PTX", "'.target sm_61'")
    code, document, out = replay(packages, monkeypatch, tmp_path, program)
    target, key, cubin = out.split("|")
    assert code == 0
    assert target == "GPUTarget(backend='cuda', arch=61, warp_size=32)"
    assert key == "12.8-61-replayed-6.1-on-9.0-12.8"
    assert cubin.strip() == "sm_90:\n.target sm_61"  # the PTX is not touched
    (kernel,) = document["kernels"]
    assert kernel.pop("ptx") and kernel == {
        "name": "add", "target": "sm_61", "gpu_target": "sm_90", "ptxas": "12.8",
        "gpu_ptxas": "12.8", "registers": 23, "stack": 16, "spill_stores": 4, "spill_loads": 12,
        "static_shared": 8, "shared": 512, "warps": 4,
    }  # fmt: skip
    assert document["words"] == "replayed at 6.1 on NVIDIA H200"
    assert document["exit_code"] == 0
    (program_row,) = document["programs"]
    assert program_row["package"] == "triton" and program_row["patched"] is False


def test_the_old_targets_ptxas_decides(
    packages: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    on_h200: None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    program = COMPILE.replace("PTX", "'too new for sm_61'")
    code, document, _ = replay(packages, monkeypatch, tmp_path, program)
    assert code == 1 and document["kernels"] == []
    assert document["refused"] == [
        {"name": "add", "error": "Feature '.acq_rel' requires .target sm_70", "times": 1}
    ]
    said = capfd.readouterr().err
    assert "PTXAS error" in said and "1 refused for the old target" in said
    assert "runs on" not in said


def test_the_gpus_ptxas_refusing_is_told_apart(
    packages: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    on_h200: None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    program = COMPILE.replace("PTX", "'too new for sm_90'")
    code, _, _ = replay(packages, monkeypatch, tmp_path, program)
    said = capfd.readouterr().err
    assert code == 1 and "did not for sm_90" in said and "LEGACY_CUDA_REPLAY_PTXAS" in said


def test_shared_memory_is_the_old_cards(
    packages: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, on_h200: None
) -> None:
    program = """
        import triton
        print(triton.runtime.driver.active.utils.get_device_properties(3), file=out)
        """
    for capability, limit in (("6.1", 49152), ("7.0", 98304)):
        _, _, out = replay(packages, monkeypatch, tmp_path, program, capability=capability)
        assert out == f"{{'max_shared_mem': {limit}, 'n': 3}}\n"


def test_what_is_refused_before_ptxas_is_told(
    packages: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, on_h200: None
) -> None:
    program = """
        from triton.backends import backends
        from triton.backends.compiler import GPUTarget
        compiler = backends["nvidia"].compiler(GPUTarget("cuda", 61, 32))
        assert compiler.make_ptx(compiler.make_llir("ir", {}, None, 61), {}, None, 61) == "ir"
        try:
            compiler.make_llir("too large", {"name": "k"}, None, 61)
        except MemoryError as error:
            print(error, file=out)
        """
    _, document, out = replay(packages, monkeypatch, tmp_path, program)
    assert out == "too large for a block\n"
    row = {"name": "k", "error": "too large for a block", "times": 1}
    assert document["refused"] == [row]


def test_torch_sees_the_old_gpu(
    packages: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, on_h200: None
) -> None:
    program = """
        import torch, torch.utils._triton, torch._dynamo.device_interface as interfaces
        properties = torch.cuda.get_device_properties(0)
        print(torch.cuda.get_device_capability(), torch.cuda.get_device_name(), properties.name,
              properties.major, properties.minor, properties.multi_processor_count,
              properties.shared_memory_per_block, properties.shared_memory_per_block_optin,
              torch.cuda.get_arch_list(), torch.utils._triton.has_triton(),
              interfaces.CudaInterface.is_triton_capable(), hasattr(properties, "nonsense"),
              sep="|", file=out)
        """
    name = "NVIDIA H200 (replayed as 6.1)"
    _, document, out = replay(packages, monkeypatch, tmp_path, program)
    assert out.strip().split("|") == [
        "(6, 1)", name, name, "6", "1", "132", "49152", "49152",
        "['sm_61', 'sm_75', 'sm_90']", "True", "True", "False",
    ]  # fmt: skip
    assert document["programs"][0]["version"] == "2.11.0+cu130"


def test_a_patched_torch_opens_its_gates_itself(
    packages: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, on_h200: None
) -> None:
    with (packages / "torch" / "utils" / "_triton.py").open("a") as file:
        file.write(f"{torch_hooks.PATCH_MARK}):\n    return True\n")
    program = """
        import torch, torch.utils._triton, torch._dynamo.device_interface as interfaces
        print(torch.utils._triton.has_triton(), interfaces.CudaInterface.is_triton_capable(),
              file=out)
        """
    _, document, out = replay(packages, monkeypatch, tmp_path, program)
    assert out == "False False\n"
    assert document["programs"][0]["patched"] is True


def test_the_mark_of_a_patched_torch_is_in_a_patch() -> None:
    added = "".join(
        (f"+{torch_hooks.PATCH_MARK}" in path.read_text() and str(path)) or ""
        for path in (Path(legacy_cuda.__file__).parent / "patches" / "torch").glob("*/*.patch")
    )
    assert added.endswith(".patch")


def test_nothing_is_launched_without_a_gpu(
    packages: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = COMPILE.replace("PTX", "'code'") + textwrap.indent(
        """
driver = triton.runtime.driver.active
launch = driver.launcher_cls(None, None)
for _ in range(3):
    launch(1, 1, 1, 0, None)
print(driver.utils.load_binary("add", cubin, 0, 0), driver.get_benchmarker()(lambda: None),
      driver.utils.get_device_properties(0)["max_shared_mem"], file=out)
""",
        "    ",
    )
    code, document, out = replay(packages, monkeypatch, tmp_path, program, "--compile-only")
    assert code == 0
    assert "sm_61:" in out and "(1, 1, 0, 0, 1024) 1.0 49152" in out
    assert document["gpu"] is None and document["launches_left_out"] == 3
    assert "gpu_target" not in document["kernels"][0]
    assert report.summary(document).startswith("compiled for 6.1, nothing launched: 1 kernel")


def test_an_unpatched_triton_is_told_once(
    packages: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    on_h200: None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    program = """
        import subprocess, sys, triton
        subprocess.run([sys.executable, "-c", "import triton"], check=True)
        """
    _, document, _ = replay(packages, monkeypatch, tmp_path, program)
    said = capfd.readouterr().err
    assert said.count("is not patched") == 1
    card = Settings.environment(command.prepare("6.1", True, False, tmp_path))
    assert f"build triton --for {card['LEGACY_CUDA_REPLAY_CARD']} --version 3.6.0" in said
    assert sum(row["processes"] for row in document["programs"]) == 2
    for words, capability in ((("--stock",), "6.1"), ((), "7.0")):
        replay(packages, monkeypatch, tmp_path, program, *words, capability=capability)
        assert "is not patched" not in capfd.readouterr().err


def test_other_processes_are_replayed_too(
    packages: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, on_h200: None
) -> None:
    """As Inductor starts its compile workers: a new Python with this one's ``sys.path``."""
    program = """
        import os, subprocess, sys
        script = "import torch; print(torch.cuda.get_device_capability())"
        path = os.pathsep.join(sys.path)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                              env={**os.environ, "PYTHONPATH": path})
        out.write(done.stdout)
        import multiprocessing
        def ask(queue):
            import torch
            queue.put(torch.cuda.get_device_capability())
        if __name__ == "__main__":
            context = multiprocessing.get_context("fork")
            queue = context.Queue()
            context.Process(target=ask, args=(queue,)).start()
            print(queue.get(timeout=60), file=out)
        """
    _, _, out = replay(packages, monkeypatch, tmp_path, program)
    assert out == "(6, 1)\n(6, 1)\n"


def test_the_sitecustomize_that_was_there_runs(
    packages: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, on_h200: None
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import builtins\nbuiltins.was_here = True\n")
    both = tmp_path / "both"
    both.mkdir()
    shutil.copytree(packages, both, dirs_exist_ok=True)
    shutil.copy(tmp_path / "sitecustomize.py", both)
    program = "import sitecustomize\nprint(was_here, sitecustomize.__file__, file=out)"
    _, document, out = replay(both, monkeypatch, tmp_path, program)
    assert out == f"True {both / 'sitecustomize.py'}\n"
    assert "nothing was replayed" in report.summary(document)


def test_a_process_that_cannot_be_replayed_does_not_start(tmp_path: Path) -> None:
    """Python ignores a sitecustomize that fails: the program would look replayed."""
    variables = {**os.environ, "PYTHONPATH": str(command.SITE), "LEGACY_CUDA_REPLAY": "nonsense"}
    done = subprocess.run(
        [sys.executable, "-c", "print('ran')"], env=variables, capture_output=True, text=True
    )
    assert done.returncode == 3 and done.stdout == ""
    assert "could not be set up" in done.stderr


# ------------------------------------------------------------------------------- the command


@pytest.mark.parametrize("code", [0, 1, 5, 77])
def test_the_exit_code_is_the_commands(code: int, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--capability", "6.1", "--compile-only", "--", sys.executable, "-c"]
    assert replay_command.run(options(*words, f"raise SystemExit({code})")) == code
    said = capsys.readouterr()
    assert said.out == "" and "nothing was replayed" in said.err


def test_a_signal_ends_the_command() -> None:
    words = ["--capability", "6.1", "--compile-only", "--", sys.executable, "-c"]
    assert replay_command.run(options(*words, "import os; os.kill(os.getpid(), 9)")) == 137


@pytest.mark.parametrize(
    ("words", "message"),
    [([], "nothing to replay"), (["--"], "nothing to replay"),
     (["--", "no-such-command-here"], "cannot be run"), (["--", os.devnull], "cannot be run"),
     (["--", os.devnull + "/x"], "cannot be run"), (["--", __file__], "cannot be run"),
     (["--report", os.devnull + "/x/y", "--", "true"], "report cannot be written"),
     (["--report", str(Path(__file__).parent), "--", "true"], "report cannot be written")],
)  # fmt: skip
def test_commands_that_cannot_run(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        replay_command.run(options("--capability", "6.1", "--compile-only", *words))
    assert caught.value.exit_code == 2 and caught.value.next_step


def test_a_record_that_breaks_off_costs_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    script = 'printf \'{"kind": "kernel", "pid\' >> "$LEGACY_CUDA_REPLAY_RECORD"; exit 5'
    words = ["--capability", "6.1", "--compile-only", "--", "sh", "-c", script]
    assert replay_command.run(options(*words)) == 5
    assert "nothing was replayed" in capsys.readouterr().err


def test_what_outlives_the_report_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "record"
    path.touch()
    record = Record(str(path))
    record.launches = 2
    record.flush()
    assert json.loads(path.read_text())["count"] == 2
    path.unlink()
    record.add("kernel")
    record.flush()
    assert not path.exists()


def test_ptxas_is_watched_thread_by_thread(tmp_path: Path) -> None:
    watched = assemble.WatchedSubprocess()
    meeting = threading.Barrier(2, timeout=60)
    seen: dict[str, list[str]] = {}

    def work(name: str) -> None:
        with watched.watch() as runs, (tmp_path / name).open("w+") as log:
            meeting.wait()
            watched.run(["sh", "-c", f"echo {name} >&2"], stderr=log)
            meeting.wait()
        seen[name] = [run.log.strip() for run in runs]

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {"a": ["a"], "b": ["b"]}


def test_options_of_the_command_are_its_own() -> None:
    parsed = options("--capability", "6.1", "--", "pytest", "-x", "--report", "--", "a")
    assert parsed.report is None
    assert parsed.words[-5:] == ["pytest", "-x", "--report", "--", "a"]


def test_records_are_left_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    replay_command.run(options("--capability", "6.1", "--compile-only", "--", "true"))
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------ pytest


@pytest.mark.parametrize("way", ["plugin", "command"])
def test_pytest_says_where_it_was_replayed(
    way: str, packages: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    test = tmp_path / "test_it.py"
    test.write_text(
        "import subprocess, sys, triton\n"
        "def test_it():\n"
        "    assert triton.runtime.driver.active.get_current_target().arch == 61\n"
        "    text = 'from triton.runtime import driver as d\\n'\n"
        "    text += 'print(d.active.get_current_target())'\n"
        "    done = subprocess.run([sys.executable, '-c', text], capture_output=True, text=True)\n"
        "    assert 'arch=61' in done.stdout, done\n"
    )
    source = Path(replay_command.__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(packages), str(source)]))
    pytest_words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", os.devnull,
                    "--rootdir", str(tmp_path), str(test)]  # fmt: skip
    document = tmp_path / "report.json"
    if way == "plugin":
        words = [*pytest_words, "-p", "legacy_cuda.replay.pytest_plugin", "--replay-capability",
                 "6.1", "--replay-compile-only", "--replay-report", str(document)]  # fmt: skip
    else:
        program = (
            "import argparse, sys\nfrom legacy_cuda.cli import replay\n"
            "parser = argparse.ArgumentParser()\nreplay.add(parser.add_subparsers())\n"
            "sys.exit(replay.run(parser.parse_args()))"
        )
        words = [sys.executable, "-c", program, "replay", "--capability", "6.1", "--compile-only",
                 "--report", str(document), "--", *pytest_words]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("compiled for 6.1, nothing launched") == 2
    written = json.loads(document.read_text())
    assert written["exit_code"] == 0
    rows = written["programs"]
    assert sum(row["processes"] for row in rows) == 2


@pytest.mark.parametrize("option", ["--replay-compile-only", "--replay-report=x"])
def test_pytest_plugin_wants_a_capability(option: str, tmp_path: Path) -> None:
    words = ["-p", "legacy_cuda.replay.pytest_plugin", option, "--rootdir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", os.devnull, *words, str(tmp_path)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(replay_command.__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 4 and "needs --replay-capability" in done.stderr


def test_pytest_plugin_refuses_as_pytest_does(tmp_path: Path) -> None:
    source = Path(replay_command.__file__).parents[2]
    words = [sys.executable, "-m", "pytest", "-p", "legacy_cuda.replay.pytest_plugin",
             "-p", "no:cacheprovider", "-c", os.devnull, "--replay-capability", "6.9",
             "--replay-compile-only", str(tmp_path)]  # fmt: skip
    variables = {**os.environ, "PYTHONPATH": str(source)}
    done = subprocess.run(words, env=variables, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 4
    assert "'6.9' is no capability that can be replayed" in done.stderr
    assert "Traceback" not in done.stderr


# ------------------------------------------------------------------------- upstream's tests


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "replay"))
    import upstream  # type: ignore[import-not-found]  # it is in tests/replay

    return upstream


@pytest.mark.parametrize(
    ("outcome", "statement", "message", "kind"),
    [
        (
            "failed",
            'assert "atom.global.gpu.acq_rel" in h.asm["ptx"]',
            "AssertionError",
            "PTX_TEXT",
        ),
        ("failed", "assert 'ld.global.v4' in ptx", "assert 'ld...' in '//...'", "PTX_TEXT"),
        ("failed", 'assert "ttg.convert" in k.asm["ttgir"]', "AssertionError", "OTHER_TEXT"),
        ("failed", "kernel[(1, )](x)", "OutOfResources: out of resource: shared memory", "SHARED"),
        ("failed", "kernel[(1, )](x)", "OutOfResources: out of resource: threads", "REST"),
        ("failed", "kernel[(1, )](x)", "PTXASError: PTXAS error: Internal", "REFUSED"),
        ("failed", "kernel[(1, )](x)", "CompilationError: at 3:4", "NOT_COMPILED"),
        ("failed", "assert_allclose(a, b)", "AssertionError: Not equal", "REST"),
        ("died", "", "the process ended with -6", "DIED"),
    ],
)
def test_failures_are_told_apart(
    upstream: Any, outcome: str, statement: str, message: str, kind: str
) -> None:
    result = {"outcome": outcome, "statement": statement, "message": message}
    assert upstream.classify(result) == getattr(upstream, kind)


UPSTREAM = """
import os, sys, time
import pytest, triton
@pytest.mark.parametrize("n", range(7))
def test_passes(n, device):
    assert device == "cpu" and triton.runtime.driver.active.get_current_target().arch == 61
def test_fails():
    assert [1] == [2]
def test_text():
    ptx = "red.global"
    assert "atom.global" in ptx
def test_skipped():
    pytest.skip("not here")
def test_dies():
    os._exit(9)
def test_hangs():
    time.sleep(600)
def test_last():
    pass
"""


def test_a_test_that_ends_its_process_ends_no_other(
    upstream: Any,
    packages: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "language").mkdir()
    (tmp_path / "language" / "test_it.py").write_text(UPSTREAM)
    (tmp_path / "conftest.py").write_text(
        "import pytest\n"
        "def pytest_addoption(parser):\n    parser.addoption('--device', default='cuda')\n"
        "@pytest.fixture\n"
        "def device(request):\n    return request.config.getoption('--device')\n"
    )
    document = tmp_path / "result.json"
    code = upstream.main(
        [str(tmp_path), "--capability", "6.1", "--compile-only", "--tests", "test_it.py",
         "--triton", f"ours={packages}", "--jobs", "2", "--patience", "5",
         "--output", str(document)]
    )  # fmt: skip
    assert code == 1 and "ours: compiled for 6.1" in capsys.readouterr().out
    row = json.loads(document.read_text())["ours"]
    assert (row["collected"], row["executed"], row["passed"], row["skipped"]) == (13, 12, 8, 1)
    assert row["by_kind"] == {upstream.PTX_TEXT: 1, upstream.DIED: 2, upstream.REST: 1}
    names = [item["test"] for item in row["failures"][upstream.DIED]]
    assert names == ["language/test_it.py::test_dies", "language/test_it.py::test_hangs"]
    assert row["versions"] == ["triton 3.6.0"]


# --------------------------------------------------------------------------------- its parts


def test_post_import_hooks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "hooked_one.py").write_text("value = 1\n")
    (tmp_path / "hooked_two.py").write_text("from hooked_one import value\n")
    seen: list[str] = []

    def hook(module: Any) -> None:
        seen.append(module.__name__)
        module.value = 2

    PostImport.install({"hooked_one": hook, "no_such_module_here": hook, "json": lambda m: None})
    assert PostImport.installed()
    import hooked_two  # type: ignore[import-not-found]  # written above

    assert hooked_two.value == 2 and seen == ["hooked_one"]
    module = sys.modules["hooked_one"]
    assert type(module.__loader__).__name__ == "SourceFileLoader"
    assert module.__spec__ is not None and module.__spec__.loader is module.__loader__
    with pytest.raises(ModuleNotFoundError):
        __import__("no_such_module_here")
    for name in ("hooked_one", "hooked_two"):
        del sys.modules[name]


def test_modules_that_are_there_are_hooked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    seen: list[Any] = []
    PostImport.install({"json": seen.append})
    assert seen == [json]


def test_records_of_many_processes(tmp_path: Path) -> None:
    path = tmp_path / "record"
    path.touch()
    script = (
        "import sys\nfrom legacy_cuda.replay.inside.record import Record\n"
        "record = Record(sys.argv[1])\n"
        "for number in range(300):\n"
        "    record.add('kernel', name=sys.argv[2], n=number, x='y' * 900)\n"
    )
    source = str(Path(replay_command.__file__).parents[2])
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(path), str(number)],
                         env={**os.environ, "PYTHONPATH": source})
        for number in range(4)
    ]  # fmt: skip
    assert [process.wait() for process in processes] == [0] * 4
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {(line["name"], line["n"]) for line in lines} == {
        (str(name), number) for name in range(4) for number in range(300)
    }
    Record("").add("kernel")  # no file is asked for, none is written


def test_ptxas_reports_are_read() -> None:
    log = (
        "ptxas info    : 0 bytes gmem\nptxas info    : Compiling entry function 'k' for 'sm_61'\n"
        "ptxas info    : Function properties for k\n"
        "    40 bytes stack frame, 36 bytes spill stores, 44 bytes spill loads\n"
        "ptxas info    : Used 255 registers, 1024 bytes smem, 352 bytes cmem[0]\n"
    )
    assert assemble.read_report(log) == {
        "registers": 255, "stack": 40, "spill_stores": 36, "spill_loads": 44,
        "static_shared": 1024,
    }  # fmt: skip
    assert set(assemble.read_report("").values()) == {0}


def test_a_real_ptxas_assembles_old_ptx_for_new_gpus(tmp_path: Path) -> None:
    """PTX of every legacy target, unchanged, for the GPU at hand."""
    import importlib.util

    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        pytest.skip("skipped: no Triton here, whose ptxas it is")
    ptxas = str(Path(spec.origin).parent / "backends/nvidia/bin/ptxas")
    for facts in catalog.capabilities().values():
        if not facts.legacy:
            continue
        ptx = (
            f".version 7.8\n.target sm_{facts.capability.number}\n.address_size 64\n"
            ".visible .entry k(.param .u64 p)\n{\n.reg .b64 %r<2>;\nld.param.u64 %r1, [p];\n"
            "st.global.b64 [%r1], %r1;\nret;\n}\n"
        )
        cubin = assemble.for_gpu(ptx, (9, 0), ptxas, [])
        assert cubin[:4] == b"\x7fELF" and cubin[48] == 90
    with pytest.raises(assemble.ReplayError, match="sm_90"):
        assemble.for_gpu("nonsense", (9, 0), ptxas, [])
