"""The CUDA driver API, as far as ``verify`` needs it: the one module that calls libcuda.so.1.

Nothing is linked: the library is the driver's own, and is there where a driver is. Only functions
that branch 470 has are called. Sizes are in bytes, times in seconds, clocks in MHz. The numbers of
attributes and the signatures are those of cuda.h.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from ctypes import byref, c_char_p, c_double, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any

from legacy_cuda.capability import Capability

LIBRARY = "libcuda.so.1"

# CU_DEVICE_ATTRIBUTE_*
_CLOCK_KHZ = 13
_MULTIPROCESSORS = 16
_TIMEOUT = 17
_ECC = 32
_MEMORY_CLOCK_KHZ = 36
_BUS_BITS = 37
_L2 = 38
_MAJOR, _MINOR = 75, 76
_SINGLE_TO_DOUBLE = 87

_JIT_ERROR_LOG, _JIT_ERROR_LOG_SIZE = 5, 6  # CU_JIT_*
_LOG_SIZE = 8192

Pointer = int  # an address in the GPU's memory


class DriverError(RuntimeError):
    """The driver refused a call: which, its error's number and name.

    ``CUDA_ERROR_LAUNCH_FAILED`` and the like end the context: nothing works in this process then.
    """

    def __init__(self, function: str, code: int, name: str) -> None:
        super().__init__(f"{function} answers {name} ({code})")
        self.function, self.code, self.name = function, code, name


class NoDriverError(RuntimeError):
    """There is no libcuda.so.1 here, or it cannot be loaded."""


@dataclass(frozen=True)
class Device:
    """What the driver says of a GPU. ``bus`` is its PCI address, ``0000:3b:00.0``.

    ``clock`` and ``memory_clock`` are the highest, in MHz; ``bus_bits`` the width of the memory's
    bus. ``timeout``: kernels that take seconds are ended, because the GPU drives a display.
    """

    index: int
    name: str
    capability: Capability
    bus: str
    memory: int
    multiprocessors: int
    clock: float
    memory_clock: float
    bus_bits: int
    l2: int
    ecc: bool
    timeout: bool
    fp32_to_fp64: int


class Driver:
    """libcuda, initialised.

    Raises:
        NoDriverError: it is not there.
        DriverError: it has no GPU, or does not work.
    """

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise NoDriverError(str(error)) from error
        self.call("cuInit", c_uint(0))

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function; every argument is a ctypes value.

        Raises:
            DriverError: it answers with an error, or this driver does not have it.
        """
        try:
            function = getattr(self._library, name)
        except AttributeError as error:
            raise DriverError(name, -1, "not in this driver") from error
        code = function(*arguments)
        if code:
            raise DriverError(name, code, self._name_of(code))

    def _name_of(self, code: int) -> str:
        text = c_char_p()
        try:
            if self._library.cuGetErrorName(c_int(code), byref(text)) == 0 and text.value:
                return text.value.decode(errors="replace")
        except AttributeError:
            pass
        return "an error"

    def version(self) -> tuple[int, int]:
        """The CUDA version that the driver implements: (11, 4) for branch 470."""
        number = c_int()
        self.call("cuDriverGetVersion", byref(number))
        return number.value // 1000, number.value % 1000 // 10

    def devices(self) -> list[Device]:
        """The visible GPUs, in the driver's order."""
        count = c_int()
        self.call("cuDeviceGetCount", byref(count))
        return [self._device(index) for index in range(count.value)]

    def _device(self, index: int) -> Device:
        handle = c_int()
        self.call("cuDeviceGet", byref(handle), c_int(index))
        name, bus = ctypes.create_string_buffer(256), ctypes.create_string_buffer(32)
        memory = c_size_t()
        self.call("cuDeviceGetName", name, c_int(len(name)), handle)
        self.call("cuDeviceGetPCIBusId", bus, c_int(len(bus)), handle)
        self.call("cuDeviceTotalMem_v2", byref(memory), handle)

        def ask(attribute: int) -> int:
            value = c_int()
            self.call("cuDeviceGetAttribute", byref(value), c_int(attribute), handle)
            return value.value

        return Device(
            index=index,
            name=name.value.decode(errors="replace"),
            capability=Capability(ask(_MAJOR), ask(_MINOR)),
            bus=bus.value.decode(errors="replace").lower(),
            memory=memory.value,
            multiprocessors=ask(_MULTIPROCESSORS),
            clock=ask(_CLOCK_KHZ) / 1000,
            memory_clock=ask(_MEMORY_CLOCK_KHZ) / 1000,
            bus_bits=ask(_BUS_BITS),
            l2=ask(_L2),
            ecc=bool(ask(_ECC)),
            timeout=bool(ask(_TIMEOUT)),
            fp32_to_fp64=ask(_SINGLE_TO_DOUBLE),
        )

    def open(self, index: int) -> Context:
        """The primary context of a GPU, made current."""
        handle, context = c_int(), c_void_p()
        self.call("cuDeviceGet", byref(handle), c_int(index))
        self.call("cuDevicePrimaryCtxRetain", byref(context), handle)
        made = Context(self, context, handle)
        made.use()
        return made

    def can_reach(self, one: int, other: int) -> bool:
        """Whether GPU ``one`` may read the memory of ``other`` over the bus."""
        answer = c_int()
        self.call("cuDeviceCanAccessPeer", byref(answer), c_int(one), c_int(other))
        return bool(answer.value)


class Context:
    """A GPU at work. Memory and modules belong to it and go with the process."""

    def __init__(self, driver: Driver, handle: c_void_p, device: c_int) -> None:
        self.driver, self.handle, self.device = driver, handle, device
        self.call = driver.call
        self._module = c_void_p()
        self._functions: dict[str, c_void_p] = {}

    def use(self) -> None:
        """Make it the current one of this thread."""
        self.call("cuCtxSetCurrent", self.handle)

    def load(self, image: bytes) -> None:
        """Load a cubin, or PTX, which the driver compiles.

        Raises:
            DriverError: it takes neither; with PTX the name of the error has the compiler's log.
        """
        log = ctypes.create_string_buffer(_LOG_SIZE)
        options = (c_int * 2)(_JIT_ERROR_LOG, _JIT_ERROR_LOG_SIZE)
        values = (c_void_p * 2)(ctypes.cast(log, c_void_p), c_void_p(_LOG_SIZE))
        try:
            self.call(
                *("cuModuleLoadDataEx", byref(self._module), c_char_p(image)),
                *(c_uint(2), options, values),
            )
        except DriverError as error:
            said = log.value.decode(errors="replace").strip()
            if said:
                error.args = (f"{error}: {said}",)
            raise

    def launch(
        self, name: str, blocks: int, arguments: Sequence[Any], threads: int = 256, shared: int = 0
    ) -> None:
        """Start a kernel of the module; arguments are ctypes values, as the kernel declares them.

        ``shared`` is dynamic shared memory of a block in bytes. Returns before the kernel ends.
        """
        if name not in self._functions:
            function = c_void_p()
            self.call("cuModuleGetFunction", byref(function), self._module, name.encode())
            self._functions[name] = function
        addresses = [ctypes.addressof(argument) for argument in arguments]
        self.call(
            "cuLaunchKernel",
            self._functions[name],
            *(c_uint(blocks), c_uint(1), c_uint(1), c_uint(threads), c_uint(1), c_uint(1)),
            *(c_uint(shared), c_void_p(None)),
            *((c_void_p * len(addresses))(*addresses), c_void_p(None)),
        )

    def wait(self) -> None:
        """Until all kernels have ended."""
        self.call("cuCtxSynchronize")

    def free_memory(self) -> int:
        """Bytes that nothing on this machine has allocated."""
        free, total = c_size_t(), c_size_t()
        self.call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value

    def allocate(self, size: int) -> Pointer:
        """Memory of the GPU; it is not cleared."""
        pointer = c_uint64()
        self.call("cuMemAlloc_v2", byref(pointer), c_size_t(size))
        return pointer.value

    def release(self, pointer: Pointer) -> None:
        """Give memory back."""
        self.call("cuMemFree_v2", c_uint64(pointer))

    @contextmanager
    def memory(self, *sizes: int) -> Iterator[list[Pointer]]:
        """Pieces of memory, given back at the end unless the GPU has failed."""
        pointers: list[Pointer] = []
        try:
            for size in sizes:
                pointers.append(self.allocate(size))
            yield pointers
        finally:
            with suppress(DriverError):  # the context may have ended, and everything in it
                for pointer in pointers:
                    self.release(pointer)

    def put(self, pointer: Pointer, data: bytes) -> None:
        """Copy to the GPU."""
        self.call("cuMemcpyHtoD_v2", c_uint64(pointer), c_char_p(data), c_size_t(len(data)))

    def get(self, pointer: Pointer, size: int) -> bytes:
        """Copy from the GPU; waits for the kernels before."""
        data = ctypes.create_string_buffer(size)
        self.call("cuMemcpyDtoH_v2", data, c_uint64(pointer), c_size_t(size))
        return data.raw

    @contextmanager
    def pinned(self, size: int) -> Iterator[Any]:
        """Memory of the machine that the GPU reads and writes by itself, as a ctypes array."""
        address = c_void_p()
        self.call("cuMemHostAlloc", byref(address), c_size_t(size), c_uint(0))
        try:
            yield (ctypes.c_char * size).from_address(address.value or 0)
        finally:
            with suppress(DriverError):  # the context may have ended
                self.call("cuMemFreeHost", address)

    def copy_in(self, pointer: Pointer, host: Any) -> None:
        """Start a copy from pinned memory, all of it."""
        size = c_size_t(ctypes.sizeof(host))
        self.call("cuMemcpyHtoDAsync_v2", c_uint64(pointer), host, size, c_void_p(None))

    def copy_out(self, host: Any, pointer: Pointer) -> None:
        """Start a copy into pinned memory, all of it."""
        size = c_size_t(ctypes.sizeof(host))
        self.call("cuMemcpyDtoHAsync_v2", host, c_uint64(pointer), size, c_void_p(None))

    def copy_peer(self, to: Pointer, other: Context, pointer: Pointer, size: int) -> None:
        """Start a copy from another GPU's memory to this one's."""
        self.call(
            *("cuMemcpyPeerAsync", c_uint64(to), self.handle, c_uint64(pointer), other.handle),
            *(c_size_t(size), c_void_p(None)),
        )

    def enable_peer(self, other: Context) -> None:
        """Let this GPU read and write the other's memory directly."""
        self.call("cuCtxEnablePeerAccess", other.handle, c_uint(0))

    def events(self) -> tuple[c_void_p, c_void_p]:
        """A pair to take the time with."""
        pair = c_void_p(), c_void_p()
        for event in pair:
            self.call("cuEventCreate", byref(event), c_uint(0))
        return pair

    def mark(self, event: c_void_p) -> None:
        """Record the moment at which the GPU comes by here."""
        self.call("cuEventRecord", event, c_void_p(None))

    def seconds(self, pair: tuple[c_void_p, c_void_p]) -> float:
        """From one event to the other; waits for the other."""
        milliseconds = c_float()
        self.call("cuEventSynchronize", pair[1])
        self.call("cuEventElapsedTime", byref(milliseconds), *pair)
        return milliseconds.value / 1000


def f32(value: float) -> Any:
    """A kernel's argument of type float."""
    return c_float(value)


def f64(value: float) -> Any:
    """A kernel's argument of type double."""
    return c_double(value)


def u32(value: int) -> Any:
    """A kernel's argument of type unsigned int."""
    return c_uint(value & 0xFFFFFFFF)


def u64(value: int) -> Any:
    """A kernel's argument of type unsigned long long, or a pointer."""
    return c_uint64(value)
