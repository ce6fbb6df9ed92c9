"""One process for one GPU, or for pairs of them: a GPU that hangs takes its process along.

Started by ``run``; the request is one line of JSON on standard input, each answer one line of JSON
on standard output: ``{"begin": NAME}`` before a step and ``{"end": NAME, ...}`` after it, so that
who reads them knows what the GPU hangs in.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from legacy_cuda import catalog
from legacy_cuda.capability import Capability
from legacy_cuda.verify import checks, rates
from legacy_cuda.verify.checks import Facts, Gpu, WrongError
from legacy_cuda.verify.driver import Device, Driver, DriverError, NoDriverError

_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY

CHECKS: dict[str, Callable[[Gpu], Facts]] = {
    "fp32": checks.fp32,
    "fp64": checks.fp64,
    "fp16 storage": checks.fp16_storage,
    "fp16": checks.fp16,
    "int8": checks.int8,
    "atomics": checks.atomics,
    "shared memory": checks.shared,
    "L2 cache": checks.l2,
    "memory": checks.memory,
}
RATES: dict[str, Callable[[Gpu], Facts]] = {
    "bandwidth": rates.bandwidth,
    "fp32 rate": rates.fp32,
    "fp64 rate": rates.fp64,
    "fp16 rate": rates.fp16,
    "dp4a rate": rates.dp4a,
    "roofline": rates.roofline,
    "link": rates.link,
}
STEPS = {**CHECKS, **RATES}
"""What is done with each GPU, in this order."""


def _say(**line: Any) -> None:
    print(json.dumps(line), flush=True)


def survey() -> None:
    """Which GPUs there are."""
    try:
        driver = Driver()
        devices = [asdict(device) for device in driver.devices()]
    except NoDriverError as error:
        _say(missing=str(error))
    except DriverError as error:
        _say(refused=str(error), code=error.code)
    else:
        for device in devices:
            device["capability"] = str(Capability(*device["capability"]))
        _say(cuda=".".join(map(str, driver.version())), devices=devices)


def _open(driver: Driver, devices: list[Device], request: dict[str, Any]) -> Gpu:
    context = driver.open(request["device"])
    context.load(base64.b64decode(request["image"]))
    return Gpu(
        device=devices[request["device"]],
        context=context,
        capability=Capability.parse(request["capability"]),
        memory_limit=request["memory_limit"],
        load=request["load"],
    )


def gpu(request: dict[str, Any]) -> None:
    """Every step on one GPU, until one leaves it useless."""
    _say(begin="start")
    driver = Driver()
    subject = _open(driver, driver.devices(), request)
    _say(end="start", outcome="passed", facts={"free": subject.context.free_memory()})
    for name, step in STEPS.items():
        if name not in request["steps"]:
            continue
        if reason := _unfit(name, subject):
            _say(end=name, outcome="not run", why=reason, facts={})
            continue
        _say(begin=name)
        if not _step(name, partial(step, subject), subject):
            return


def _unfit(name: str, subject: Gpu) -> str:
    """Why a step is not for this GPU, "" where it is."""
    facts = catalog.capabilities().get(subject.capability)
    if facts is None:
        return ""  # newer than the catalog
    if name == "fp16 rate" and facts.fp16_fp32_ratio == "none":
        return f"no arithmetic of halves at {subject.capability}"
    if name == "dp4a rate" and not facts.dp4a:
        return f"no dp4a at {subject.capability}"
    return ""


def _step(name: str, work: Callable[[], Facts], subject: Gpu) -> bool:
    """Do one and say what came of it; whether the GPU is still of use."""
    try:
        facts = work()
    except WrongError as error:
        _say(end=name, outcome="failed", why=str(error), facts=error.facts)
    except DriverError as error:
        full = error.code == _OUT_OF_MEMORY
        _say(end=name, outcome="not run" if full else "error", why=str(error), facts={})
        try:
            subject.context.wait()
        except DriverError:
            return False
    else:
        _say(end=name, outcome="passed", facts=facts)
    return True


def peers(request: dict[str, Any]) -> None:
    """Copies between all pairs of GPUs."""
    _say(begin="start")
    driver = Driver()
    devices = driver.devices()
    subjects = [_open(driver, devices, part) for part in request["gpus"]]
    _say(end="start", outcome="passed", facts={})
    for source in subjects:
        for target in subjects:
            if source is target:
                continue
            name = f"{source.device.index} to {target.device.index}"
            _say(begin=name)
            try:
                direct = driver.can_reach(source.device.index, target.device.index)
            except DriverError:
                direct = False
            if not _step(name, partial(rates.peer, source, target, direct), source):
                return


def main() -> int:
    """Read the request and do it."""
    request = json.loads(sys.stdin.readline())
    try:
        if request["do"] == "survey":
            survey()
        elif request["do"] == "gpu":
            gpu(request)
        else:
            peers(request)
    except (DriverError, NoDriverError) as error:
        _say(end="start", outcome="error", why=str(error), facts={})
    return 0
