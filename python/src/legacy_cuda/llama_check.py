"""Run inside a stack's environment: load llama.cpp and say, as JSON, what it was built for.

Executed as a file by that environment's Python, so it imports nothing of legacy-cuda. On a machine
with a working driver it also multiplies a small matrix on every GPU and compares with the CPU.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

# ggml.h and ggml-backend.h of the sources that the recipe pins
_F32 = 0
_GPU = 1
_SIDE = 64
_CAPABILITY = (75, 76)  # cuda.h: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, ..._MINOR


class _Feature(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("value", ctypes.c_char_p))


class _Props(ctypes.Structure):  # ggml_backend_dev_props, and room behind it
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("description", ctypes.c_char_p),
        ("memory_free", ctypes.c_size_t),
        ("memory_total", ctypes.c_size_t),
        ("type", ctypes.c_int),
        ("device_id", ctypes.c_char_p),
        ("rest", ctypes.c_char * 256),
    )


class _Memory(ctypes.Structure):  # ggml_init_params
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


def check() -> dict[str, Any]:
    """Version, arch flags and devices of the llama.cpp that is importable here, and its server's.

    ``arch_flags`` is None where the library for GPUs cannot be loaded for want of a driver.
    """
    llama = importlib.import_module("llama_cpp")
    llama.llama_backend_init()
    folder = Path(str(llama.__file__)).parent / "lib"
    ggml = _Ggml(ctypes.CDLL(str(folder / "libggml-base.so")), folder)
    result: dict[str, Any] = {
        "version": llama.__version__,
        "arch_flags": None,
        "devices": [],
        "server": _server(),
    }
    try:
        ctypes.CDLL(str(folder / "libggml-cuda.so"))
    except OSError as error:
        result["gpu_library"] = str(error)
        if "libcuda.so.1" not in str(error):
            result["error"] = str(error)
        return result
    result["arch_flags"] = ggml.arch_flags()
    result["devices"] = [ggml.run(device) for device in ggml.devices(_GPU)]
    return result


def _server() -> str:
    """What llama-server, beside this Python, says of its version.

    Raises:
        RuntimeError: it does not start.
    """
    command = [str(Path(sys.executable).parent / "llama-server"), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    lines = (done.stderr + done.stdout).splitlines()
    for line in lines:
        if line.startswith("version:"):
            return line.partition(":")[2].strip()
    why = lines[-1] if lines else f"it ended with code {done.returncode}"
    raise RuntimeError(f"llama-server does not start: {why}")


class _Ggml:
    """The few calls of ggml's C interface that are needed here."""

    def __init__(self, library: ctypes.CDLL, folder: Path) -> None:
        self._base = library
        self._main = ctypes.CDLL(str(folder / "libggml.so"))  # the registry of back ends

    def _call(self, name: str, result: Any, *arguments: Any) -> Any:
        library = self._main if hasattr(self._main, name) else self._base
        function: Any = getattr(library, name)
        function.restype = result
        return function(*arguments)

    def arch_flags(self) -> list[str]:
        """``sm_61`` and so on, from the features that the library for GPUs reports."""
        registry = self._call("ggml_backend_reg_by_name", ctypes.c_void_p, b"CUDA")
        if not registry:
            return []
        address = self._call(
            "ggml_backend_reg_get_proc_address",
            ctypes.c_void_p,
            ctypes.c_void_p(registry),
            b"ggml_backend_get_features",
        )
        features = ctypes.CFUNCTYPE(ctypes.POINTER(_Feature), ctypes.c_void_p)(address)(registry)
        flags = []
        for feature in features:
            if not feature.name:
                break
            if feature.name == b"ARCHS":
                flags += [f"sm_{int(word) // 10}" for word in re.findall(rb"\d+", feature.value)]
        return flags

    def devices(self, kind: int) -> list[int]:
        """The devices of a kind, as pointers."""
        count = self._call("ggml_backend_dev_count", ctypes.c_size_t)
        found = [
            self._call("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t(index))
            for index in range(count)
        ]
        return [
            device
            for device in found
            if self._call("ggml_backend_dev_type", ctypes.c_int, ctypes.c_void_p(device)) == kind
        ]

    def run(self, device: int) -> dict[str, Any]:
        """Multiply two matrices there; what came of it."""
        pointer, props = ctypes.c_void_p(device), _Props()
        self._call("ggml_backend_dev_get_props", None, pointer, ctypes.byref(props))
        found: dict[str, Any] = {
            "name": props.description.decode(errors="replace"),
            "capability": _capability(props.device_id or b""),
        }
        try:
            found["ran"] = self._multiply(pointer)
        except Exception as error:  # whatever goes wrong is the result
            found["ran"] = False
            found["error"] = str(error).partition("\n")[0]
        return found

    def _multiply(self, device: ctypes.c_void_p) -> bool:
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        backend = pointer(self._call("ggml_backend_dev_init", pointer, device, pointer(None)))
        if not backend:
            raise RuntimeError("the device cannot be used")
        context = pointer(self._call("ggml_init", pointer, _Memory(1 << 20, None, True)))
        shape = (ctypes.c_int(_F32), ctypes.c_int64(_SIDE), ctypes.c_int64(_SIDE))
        one, other = (
            pointer(self._call("ggml_new_tensor_2d", pointer, context, *shape)) for _ in range(2)
        )
        product = pointer(self._call("ggml_mul_mat", pointer, context, one, other))
        graph = pointer(self._call("ggml_new_graph", pointer, context))
        self._call("ggml_build_forward_expand", None, graph, product)
        if not self._call("ggml_backend_alloc_ctx_tensors", pointer, context, backend):
            raise RuntimeError("there is no memory on it")
        dice = random.Random(1)
        rows = [[dice.uniform(-1, 1) for _ in range(_SIDE * _SIDE)] for _ in range(2)]
        array = ctypes.c_float * (_SIDE * _SIDE)
        whole = size(ctypes.sizeof(array))
        for tensor, values in zip((one, other), rows, strict=True):
            data = array(*values)
            self._call("ggml_backend_tensor_set", None, tensor, data, size(0), whole)
        status = self._call("ggml_backend_graph_compute", ctypes.c_int, backend, graph)
        if status != 0:
            raise RuntimeError(f"ggml answers with status {status}")
        result = array()
        self._call("ggml_backend_tensor_get", None, product, result, size(0), whole)
        self._call("ggml_backend_free", None, backend)
        return all(
            abs(result[row * _SIDE + column] - _dot(rows[0], column, rows[1], row)) < 1e-3
            for row in range(_SIDE)
            for column in range(_SIDE)
        )


def _dot(one: list[float], at: int, other: list[float], place: int) -> float:
    left = one[at * _SIDE : (at + 1) * _SIDE]
    right = other[place * _SIDE : (place + 1) * _SIDE]
    return sum(a * b for a, b in zip(left, right, strict=True))


def _capability(bus: bytes) -> str:
    """Of the GPU at that PCI address, from the driver; "" where it does not say."""
    driver = ctypes.CDLL("libcuda.so.1")
    device, value = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetByPCIBusId(ctypes.byref(device), bus):
        return ""
    parts = []
    for attribute in _CAPABILITY:
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return ""
        parts.append(str(value.value))
    return ".".join(parts)


if __name__ == "__main__":
    try:
        result = check()
    except Exception as error:  # an import error is a result, not an accident
        result = {"error": f"{type(error).__name__}: {error}"}
    json.dump(result, sys.stdout)
