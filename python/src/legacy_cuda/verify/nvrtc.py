"""NVRTC, NVIDIA's compiler in a library: the one module that calls it. It needs no GPU.

Signatures are those of nvrtc.h. Machine code (``sm_61``) comes out as a cubin, since NVRTC 11.1.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p
from pathlib import Path
from typing import Any

from legacy_cuda.capability import Capability, Target

# A thread's locale (POSIX): None asks for it.
_uselocale = ctypes.CDLL(None).uselocale
_uselocale.restype, _uselocale.argtypes = c_void_p, [c_void_p]


class NvrtcError(RuntimeError):
    """The library cannot be loaded, or does not compile the source."""


class Nvrtc:
    """One NVRTC: its path, its CUDA version, and the capabilities that it compiles for.

    Raises:
        NvrtcError: it is none, or too old to make machine code.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # It asks the loader for its headers, libnvrtc-builtins, by name: they lie beside it.
            for part in sorted(path.parent.glob("libnvrtc-builtins.so*")):
                ctypes.CDLL(str(part))
            self._library = ctypes.CDLL(str(path))
            major, minor, count = c_int(), c_int(), c_int()
            self._call("nvrtcVersion", byref(major), byref(minor))
            self._call("nvrtcGetNumSupportedArchs", byref(count))
            numbers = (c_int * count.value)()
            self._call("nvrtcGetSupportedArchs", numbers)
        except (OSError, AttributeError) as error:
            raise NvrtcError(f"{path}: {error}") from error
        self.version = (major.value, minor.value)
        self.capabilities = frozenset(map(Capability.from_number, numbers))

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            raise NvrtcError(f"{self.path}: {name} answers with error {code}")

    def compile(self, source: str, target: Target) -> bytes:
        """The cubin, or the PTX, of a source.

        Raises:
            NvrtcError: it does not compile; the compiler's log says why.
        """
        program = c_void_p()
        self._call(
            *("nvrtcCreateProgram", byref(program), c_char_p(source.encode())),
            *(c_char_p(b"probe.cu"), c_int(0), None, None),
        )
        try:
            options = (c_char_p * 1)(f"--gpu-architecture={target}".encode())
            before = _uselocale(None)
            try:
                self._call("nvrtcCompileProgram", program, c_int(1), options)
            except NvrtcError as error:
                said = self._read("ProgramLog", program).decode(errors="replace").strip("\0\n")
                raise NvrtcError(f"{error}\n{said}") from error
            finally:
                _uselocale(before)  # 11.7 leaves the thread with C's
            return self._read("CUBIN" if target.kind == "sass" else "PTX", program)
        finally:
            self._call("nvrtcDestroyProgram", byref(program))

    def _read(self, what: str, program: c_void_p) -> bytes:
        size = c_size_t()
        self._call(f"nvrtcGet{what}Size", program, byref(size))
        data = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, data)
        return data.raw
