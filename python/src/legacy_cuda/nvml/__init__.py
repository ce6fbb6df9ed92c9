"""What the NVIDIA driver says of its GPUs, through NVML. The one wrapper; it only reads.

A call into the driver can hang in the kernel for ever, where nothing reaches it: a thread that is
abandoned there keeps its program from ending, and its pipes open. So NVML is asked by a process of
its own (``worker.py``), with no file of the caller's, which is left behind when it does not answer.
Nobody waits for it, and the caller is never held longer than the limit it gave.

In that process each GPU has a thread. One that hangs or is lost takes no other with it, and what it
said before the call that hangs is kept. A value that is not there is None, and ``Device.missing``
says why.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from importlib.machinery import PathFinder
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

#: Seconds in which a healthy driver answers, its start without persistence mode included.
LIMIT = 5.0
#: Readers that did not die when they were killed, before no other is started.
_MOST_STUCK = 3
_REPLY = 16 << 20  # bytes; no machine has so much to say

#: Seconds of a limit that are kept for the answer's way back, at most.
_MARGIN = 0.5


@dataclass(frozen=True, slots=True)
class Missing:
    """Why there is no value.

    ``error`` is NVML's name of the error without ``NVML_ERROR_`` (``NOT_SUPPORTED``,
    ``NO_PERMISSION``, ``GPU_IS_LOST``, ``FUNCTION_NOT_FOUND``, ``DRIVER_NOT_LOADED``,
    ``LIB_RM_VERSION_MISMATCH``, ``LIBRARY_NOT_FOUND`` ...), ``TIMED_OUT`` for a call that has not
    come back, ``UNREADABLE`` for an answer that makes no sense, or ``READER_DIED``. ``call`` is the
    function that was asked, or what else there is to say.
    """

    error: str
    call: str

    def __str__(self) -> str:
        return f"{self.error.replace('_', ' ').lower()} ({self.call})"


@dataclass(frozen=True, slots=True)
class Process:
    """A process with a context on a GPU. Memory in bytes, the share of the multiprocessors in
    percent over the driver's last sampling period. ``name`` is that of ``/proc``, None for a
    process of another namespace."""

    pid: int
    kind: Literal["compute", "graphics"]
    memory_bytes: int | None
    name: str | None
    sm_percent: int | None


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU as NVML sees it; a card with two dies is two.

    Bytes, watts, joules, MHz, degrees C, percent, seconds. ECC counts are errors, ``volatile``
    since the driver was loaded, ``aggregate`` since the card was made. ``pcie_*_bytes_s`` are
    measured over 20 ms. ``*_violation_s`` is how long clocks were lowered for that reason since the
    driver was loaded. Source of the units: NVML API reference.
    """

    index: int
    missing: Mapping[str, Missing] = field(default_factory=dict)
    # What it is
    name: str | None = None
    uuid: str | None = None
    pci_address: str | None = None
    pci_id: str | None = None
    pci_subsystem_id: str | None = None
    vbios: str | None = None
    capability: str | None = None
    # How it is set up
    persistence: bool | None = None
    compute_mode: str | None = None
    display_active: bool | None = None
    mig: bool | None = None
    ecc: bool | None = None
    ecc_pending: bool | None = None
    # What it does
    memory_total_bytes: int | None = None
    memory_reserved_bytes: int | None = None
    memory_used_bytes: int | None = None
    memory_free_bytes: int | None = None
    bar1_total_bytes: int | None = None
    bar1_used_bytes: int | None = None
    utilization_percent: int | None = None
    memory_utilization_percent: int | None = None
    encoder_percent: int | None = None
    decoder_percent: int | None = None
    temperature_c: int | None = None
    temperature_memory_c: int | None = None
    temperature_slowdown_c: int | None = None
    temperature_shutdown_c: int | None = None
    fan_percent: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    power_enforced_limit_w: float | None = None
    power_default_limit_w: float | None = None
    power_min_limit_w: float | None = None
    power_max_limit_w: float | None = None
    energy_j: float | None = None
    pstate: int | None = None
    clock_graphics_mhz: int | None = None
    clock_sm_mhz: int | None = None
    clock_memory_mhz: int | None = None
    clock_video_mhz: int | None = None
    clock_graphics_max_mhz: int | None = None
    clock_sm_max_mhz: int | None = None
    clock_memory_max_mhz: int | None = None
    throttle_reasons: tuple[str, ...] | None = None
    power_violation_s: float | None = None
    thermal_violation_s: float | None = None
    pcie_generation: int | None = None
    pcie_generation_max: int | None = None
    pcie_width: int | None = None
    pcie_width_max: int | None = None
    pcie_replays: int | None = None
    pcie_sent_bytes_s: int | None = None
    pcie_received_bytes_s: int | None = None
    # What went wrong
    ecc_corrected_volatile: int | None = None
    ecc_uncorrected_volatile: int | None = None
    ecc_corrected_aggregate: int | None = None
    ecc_uncorrected_aggregate: int | None = None
    retired_pages_single_bit: int | None = None
    retired_pages_double_bit: int | None = None
    retired_pages_pending: bool | None = None
    # Who uses it
    processes: tuple[Process, ...] | None = None

    @property
    def failure(self) -> Missing | None:
        """Why the GPU as a whole does not answer: it is lost, hangs, is forbidden. Or None."""
        return self.missing.get("device")


#: The fields of ``Device`` that say which GPU it is, and do not change.
IDENTITY = ("name", "uuid", "pci_address", "pci_id", "pci_subsystem_id", "vbios", "capability")


#: The reasons for which clocks can be lowered, as nvidia-smi's clocks_throttle_reasons.* has them.
THROTTLE_REASONS = (
    *("gpu_idle", "applications_clocks_setting", "sw_power_cap", "hw_slowdown", "sync_boost"),
    *("sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown"),
    "display_clock_setting",
)


@dataclass(frozen=True, slots=True)
class Xid:
    """An error the driver reported of a GPU while it was watched. ``last``: Unix time, seconds."""

    index: int
    xid: int
    count: int
    last: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All GPUs at a time (Unix, seconds). With an ``error`` NVML as a whole gave nothing.

    ``start_s`` is how long the driver took to start, and to give the handle of the slowest GPU.
    ``xids`` holds what was reported since the session began; ``xid_missing`` says why nobody
    watches, None where somebody does.
    """

    time: float
    duration_s: float
    driver_version: str | None = None
    cuda_version: str | None = None
    error: Missing | None = None
    devices: tuple[Device, ...] = ()
    xids: tuple[Xid, ...] = ()
    xid_missing: Missing | None = None
    start_s: float = 0.0


_FIELDS = frozenset(each.name for each in fields(Device))


def snapshot(limit: float = LIMIT) -> Snapshot:
    """All GPUs now, within ``limit`` seconds. Never raises for what the driver does."""
    with Session(events=False) as session:
        return session.sample(limit)


class Session:
    """A reader of NVML that stays, for those who sample again and again; for one thread.

    Args:
        events: whether to watch for Xid errors.
    """

    def __init__(self, events: bool = True) -> None:
        self._events = events
        self._process: subprocess.Popen[bytes] | None = None
        self._stuck: list[subprocess.Popen[bytes]] = []
        self._earlier: tuple[Xid, ...] = ()  # what readers saw that are gone
        self._xids: tuple[Xid, ...] = ()  # and with what the one that is there saw

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def sample(self, limit: float = LIMIT) -> Snapshot:
        """All GPUs now, within ``limit`` seconds; what has not answered by then is missing."""
        began, now = time.monotonic(), time.time()

        def failed(error: str, call: str) -> Snapshot:
            why = Missing(error, call)
            return Snapshot(
                now, time.monotonic() - began, error=why, xids=self._xids, xid_missing=why
            )

        self._stuck = [process for process in self._stuck if process.poll() is None]
        if self._process is None:
            if len(self._stuck) >= _MOST_STUCK:
                return failed("TIMED_OUT", f"{len(self._stuck)} readers hang in the driver")
            try:
                self._process = self._start()
            except OSError as error:
                return failed("READER_DIED", f"it cannot be started: {error}")
        request = {"deadline": began + limit - min(_MARGIN, limit / 4)}
        try:
            assert self._process.stdin
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            line = self._line(began + limit)
        except OSError:
            line = b""
        if line is None:
            self.close()
            return failed("TIMED_OUT", "the reader did not answer")
        if not line:
            code = self._process.poll()
            self.close()
            return failed("READER_DIED", f"exit code {code}" if code is not None else "it is gone")
        try:
            found = _read(json.loads(line), now, time.monotonic() - began)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            self.close()
            return failed("READER_DIED", f"its reply makes no sense: {error}")
        self._xids = _together(self._earlier, found.xids)
        return replace(found, xids=self._xids)

    def close(self) -> None:
        """Leave the reader; ``sample`` starts another. Never waits for it."""
        self._earlier = self._xids
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe:
                with suppress(OSError):
                    pipe.close()
        process.kill()
        self._stuck.append(process)

    def _start(self) -> subprocess.Popen[bytes]:
        # -I and -S: neither the environment nor the working folder decides what is imported.
        places = [str(Path(__file__).parents[2]), *_place_of_the_binding()]
        code = (
            "import sys; sys.path += sys.argv[2:]; "
            "from legacy_cuda.nvml import worker; worker.main(sys.argv[1] == 'events')"
        )
        return subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", "-c", code, "events" if self._events else "once"),
                *places,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )

    def _line(self, deadline: float) -> bytes | None:
        """One line of the reader's, b"" where it has ended, None where the deadline passed."""
        assert self._process
        assert self._process.stdout
        pipe = self._process.stdout.fileno()
        ready = select.poll()  # select() takes no number above 1023
        ready.register(pipe, select.POLLIN)
        collected = bytearray()
        while not collected.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not ready.poll(1000 * left):
                return None
            part = os.read(pipe, 1 << 16)
            if not part or len(collected) > _REPLY:
                return b""
            collected += part
        return bytes(collected)


def _place_of_the_binding() -> list[str]:
    """The folder with nvidia-ml-py's module, which is not the working folder."""
    try:
        here = Path.cwd()
    except OSError:  # it was removed
        here = None
    trusted = [place for place in sys.path if place and Path(place).resolve() != here]
    binding = PathFinder.find_spec("pynvml", trusted)
    return [str(Path(binding.origin).parent)] if binding and binding.origin else []


def _together(earlier: tuple[Xid, ...], later: tuple[Xid, ...]) -> tuple[Xid, ...]:
    """The counts of both, by GPU and Xid."""
    found = {(xid.index, xid.xid): xid for xid in earlier}
    for xid in later:
        before = found.get((xid.index, xid.xid))
        found[xid.index, xid.xid] = replace(xid, count=xid.count + before.count) if before else xid
    return tuple(found[key] for key in sorted(found))


def _missing(row: list[str] | None) -> Missing | None:
    return Missing(*row) if row else None


def _read(reply: Mapping[str, Any], now: float, duration: float) -> Snapshot:
    """The worker's reply as records."""
    devices = []
    for row in reply["devices"]:
        values = {name: value for name, value in row["values"].items() if name in _FIELDS}
        for name in ("throttle_reasons", "processes"):
            if values.get(name) is not None:
                values[name] = tuple(values[name])
        if values.get("processes"):
            values["processes"] = tuple(Process(**one) for one in values["processes"])
        missing = {name: Missing(*why) for name, why in row["missing"].items()}
        devices.append(Device(index=row["index"], missing=missing, **values))
    return Snapshot(
        time=now,
        duration_s=duration,
        driver_version=reply["driver_version"],
        cuda_version=reply["cuda_version"],
        error=_missing(reply["error"]),
        devices=tuple(devices),
        xids=tuple(Xid(*row) for row in reply["xids"]),
        xid_missing=_missing(reply["xid_missing"]),
        start_s=reply["start_s"],
    )
