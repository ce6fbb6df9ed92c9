"""A thread that samples NVML again and again, and keeps the last state as a finished page."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace

from prometheus_client import ProcessCollector

from legacy_cuda.monitor import INTERVAL, metrics, overview
from legacy_cuda.monitor.asking import Asking
from legacy_cuda.monitor.engines import Engine, families
from legacy_cuda.nvml import IDENTITY, Device, Missing, Session, Snapshot

#: Seconds that a sample waits for the driver at most.
LIMIT = 5.0
#: Seconds after which NVML is started anew while something is wrong: a library that was replaced or
#: a GPU that was reset is not seen by one that stays. Not where a call hangs, which that would not
#: help.
RENEWAL = 60.0


class Sampler:
    """Samples until it is stopped. ``page`` (metrics) and ``overview`` (HTML) show the last one.

    Args:
        interval: seconds from the beginning of one sample to that of the next.
        limit: seconds after which a GPU that does not answer is left out of a sample.
        power_caps: watts by a card's name, "" for every card.
        engines: those that are asked too.
    """

    def __init__(
        self,
        interval: float = INTERVAL,
        limit: float = LIMIT,
        power_caps: Mapping[str, float] | None = None,
        engines: Iterable[Engine] = (),
    ) -> None:
        self._interval = interval
        self._limit = limit
        self._session = Session()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._asking = [Asking(engine, interval) for engine in engines]
        self._process = ProcessCollector(registry=None)
        self._renewed = time.monotonic()
        nothing = Snapshot(time=0.0, duration_s=0.0)
        self.state = metrics.State(nothing, (), {}, power_caps=power_caps)
        self.page = self.overview = b""

    def start(self) -> None:
        """Take a first sample, so that there is a page, and go on in the background."""
        for one in self._asking:
            one.start()
        self.sample()
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether samples are taken in the background."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End, at most ``limit`` seconds later."""
        self._stop.set()
        for one in self._asking:
            one.stop()
        if self._thread.is_alive():
            self._thread.join()
        self._session.close()

    def sample(self) -> metrics.State:
        """Take one sample and make the page of it."""
        snapshot = self._session.sample(self._limit)
        self.state = after(self.state, snapshot)
        readings = [one.reading for one in self._asking]
        self.page = metrics.render(
            [
                *metrics.families(self.state),
                *families(readings, self.state.devices),
                *self._process.collect(),
            ]
        )
        self.overview = overview.page(self.state, readings)
        if _may_help_to_renew(snapshot) and time.monotonic() - self._renewed > RENEWAL:
            self._session.close()
            self._renewed = time.monotonic()
        return self.state

    def _run(self) -> None:
        due = time.monotonic()
        while True:
            due = max(due + self._interval, time.monotonic())
            if self._stop.wait(due - time.monotonic()):
                return
            self.sample()


def _may_help_to_renew(snapshot: Snapshot) -> bool:
    reasons = [snapshot.error, *(device.failure for device in snapshot.devices)]
    errors = {reason.error for reason in reasons if reason}
    return bool(errors) and "TIMED_OUT" not in errors


def after(state: metrics.State, snapshot: Snapshot) -> metrics.State:
    """The state that a snapshot makes of the one before: GPUs keep their names while they are lost,
    and those that the driver lists no more are shown as not there."""
    taken = {device.uuid for device in snapshot.devices}
    before = {device.index: device for device in state.devices if device.uuid not in taken}
    listed = [_named(device, before.get(device.index)) for device in snapshot.devices]
    keys = {metrics.key(device) for device in listed}
    # one that never said who it is, and whose index is listed, says it now
    places = {str(device.index) for device in listed}
    gone = [_unlisted(one) for one in state.devices if metrics.key(one) not in keys | places]
    answered = {metrics.key(d): snapshot.time for d in listed if d.failure is None}
    fine = snapshot.error is None and all(device.failure is None for device in listed)
    return replace(
        state,
        snapshot=snapshot,
        devices=tuple(sorted([*gone, *listed], key=lambda device: device.index)),
        answered={**state.answered, **answered},
        samples=state.samples + 1,
        failures=state.failures + (not fine),
    )


def _named(device: Device, before: Device | None) -> Device:
    """A GPU that does not say who it is, is the one that had its index and is not elsewhere."""
    if device.uuid is not None or before is None:
        return device
    return replace(device, **{name: getattr(before, name) for name in IDENTITY})


def _unlisted(device: Device) -> Device:
    why = Missing("NOT_LISTED", "nvmlDeviceGetCount")
    identity = {name: getattr(device, name) for name in IDENTITY}
    return Device(index=device.index, missing={"device": why}, **identity)
