"""Triton's driver answers the old capability, its compiler assembles twice."""

from __future__ import annotations

import atexit
import functools
import hashlib
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

from . import assemble
from .assemble import WatchedSubprocess
from .imports import Hook
from .offline import OfflineDriver
from .record import Record, program
from .settings import PREFIX, Settings, dotted, number

FACTS = "legacy_cuda_replay"
"""The field of a kernel's metadata that holds what is known of it, as JSON."""

PATCHED_BELOW = (7, 0)
"""Below it most of Triton needs the patched wheel."""


def hooks(settings: Settings, record: Record) -> dict[str, Hook]:
    """The hooks on Triton's modules."""
    _choose_ptxas(settings)
    found: dict[str, Hook] = {
        "triton": functools.partial(_package, settings, record),
        "triton.backends": functools.partial(_backends, settings, record),
        "triton.compiler.compiler": functools.partial(_kernels, record),
    }
    if settings.compile_only:
        found["triton.runtime.driver"] = functools.partial(_offline, settings, record)
    return found


def _choose_ptxas(settings: Settings) -> None:
    """Keep Inductor from pointing Triton at the ptxas of torch's wheel, which may be of a CUDA that
    has dropped the old target. Below 5.0 Triton's own is too new as well; the patched Triton looks
    for one there."""
    if settings.capability < (5, 0) or "TRITON_PTXAS_PATH" in os.environ:
        return
    spec = importlib.util.find_spec("triton")
    if spec is not None and spec.origin:
        bundled = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "ptxas"
        if bundled.exists():
            os.environ["TRITON_PTXAS_PATH"] = str(bundled)


def _package(settings: Settings, record: Record, triton: Any) -> None:
    folder = Path(triton.__file__).parent
    patched = (folder / "backends" / "nvidia" / "legacy").is_dir()
    record.add_once(
        "process",
        "triton",
        program=program(),
        package="triton",
        version=triton.__version__,
        patched=patched,
    )
    if patched or settings.stock or settings.capability >= PATCHED_BELOW:
        return
    if os.environ.get(f"{PREFIX}_WARNED") == "1":
        return
    os.environ[f"{PREFIX}_WARNED"] = "1"
    version = triton.__version__.partition("+")[0]
    if version in settings.tritons:
        advice = "Make one that is"
    else:
        advice = f"There are patches for {', '.join(settings.tritons)}"
        version = settings.tritons[-1] if settings.tritons else version
    print(
        f"warning: this Triton {triton.__version__} is not patched, and much of it does not "
        f"compile for {dotted(settings.capability)}. {advice}: legacy-cuda build triton "
        f"--for {settings.card} --version {version}. "
        "(--stock replays this one without saying so.)",
        file=sys.stderr,
        flush=True,
    )


def _backends(settings: Settings, record: Record, module: Any) -> None:
    """Triton 3.3 does not import the backend's modules by name: they are reached by its classes."""
    backend = module.backends["nvidia"]
    _compiler(settings, record, backend.compiler)
    if not settings.compile_only:
        _driver(settings, backend.driver)


def _driver(settings: Settings, driver: Any) -> None:
    """A driver whose GPU is an old one."""
    names = driver.get_current_target.__globals__
    tools, target = names["CudaUtils"], names["GPUTarget"]
    initialise = tools.__init__

    @functools.wraps(initialise)
    def utils(self: Any) -> None:
        initialise(self)
        ask = self.get_device_properties

        def get_device_properties(device: int) -> dict[str, int]:
            # "max_shared_mem" is what a block can ask for
            return {**ask(device), "max_shared_mem": settings.shared_optin}

        self.get_device_properties = get_device_properties

    tools.__init__ = utils

    def get_current_target(self: Any) -> Any:
        return target("cuda", number(settings.capability), 32)

    driver.get_current_target = get_current_target


def _compiler(settings: Settings, record: Record, backend: Any) -> None:
    """A compiler that asks the old target's ptxas first and then assembles for the GPU."""
    for stage in ("make_llir", "make_ptx"):  # where shared memory and PTX are checked
        setattr(backend, stage, _noted(getattr(backend, stage), record))
    make_cubin, make_hash = backend.make_cubin, backend.hash
    names = make_cubin.__globals__
    watched = names["subprocess"] = WatchedSubprocess()
    ptxas = ""
    if settings.gpu is not None:
        ptxas = assemble.ptxas_for(settings.gpu, Path(names["__file__"]).parent)

    @functools.wraps(make_cubin)
    def replayed(self: Any, src: Any, metadata: Any, opt: Any, *arguments: Any) -> Any:
        name = str(metadata.get("name", ""))
        with watched.watch() as runs:
            try:
                cubin = make_cubin(self, src, metadata, opt, *arguments)
            except Exception as error:
                record.add("refused", name=name, error=assemble.complaint(error))
                raise
        facts: dict[str, Any] = {
            "name": name,
            "ptx": hashlib.sha256(src.encode()).hexdigest(),
            "target": f"sm_{self.target.arch}",
            "shared": int(metadata.get("shared") or 0),
            "warps": int(metadata.get("num_warps") or opt.num_warps),
        }
        if runs:
            facts["ptxas"] = assemble.release(runs[-1].command[0])
            facts |= assemble.read_report(runs[-1].log)
        if settings.gpu is not None:
            options = ["-lineinfo"]
            if not opt.enable_fp_fusion:
                options.append("--fmad=false")
            options += (getattr(opt, "ptx_options", None) or "").split()
            cubin = assemble.for_gpu(src, settings.gpu, ptxas, options)
            facts["gpu_target"] = f"sm_{number(settings.gpu)}"
            facts["gpu_ptxas"] = assemble.release(ptxas)
        metadata[FACTS] = json.dumps(facts)
        return cubin

    def keyed(self: Any) -> str:
        return f"{make_hash(self)}-{settings.key}-{assemble.release(ptxas) if ptxas else ''}"

    backend.make_cubin = replayed
    backend.hash = keyed


def _noted(stage: Any, record: Record) -> Any:
    """A stage of the compiler whose refusals go into the record."""

    @functools.wraps(stage)
    def noted(self: Any, src: Any, metadata: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return stage(self, src, metadata, *arguments, **options)
        except Exception as error:
            # a kernel has its name once it is PTX; what is refused before says it itself
            record.add(
                "refused", name=str(metadata.get("name", "")), error=assemble.complaint(error)
            )
            raise

    return noted


def _kernels(record: Record, module: Any) -> None:
    """Every kernel that is loaded goes into the record, from the cache too."""
    initialise = module.CompiledKernel.__init__

    @functools.wraps(initialise)
    def recorded(self: Any, *arguments: Any, **options: Any) -> None:
        initialise(self, *arguments, **options)
        text = getattr(self.metadata, FACTS, None)
        if text:
            facts = json.loads(text)
            record.add_once("kernel", facts["name"] + facts["ptx"], **facts)

    module.CompiledKernel.__init__ = recorded


def _offline(settings: Settings, record: Record, module: Any) -> None:
    """No GPU: the old capability is answered, and launches are counted."""
    driver = OfflineDriver(settings, record)
    module._create_driver = lambda: driver
    config = module.driver
    for name in ("_default", "_active") if hasattr(config, "_default") else ("default", "active"):
        setattr(config, name, driver)
    atexit.register(record.flush)
