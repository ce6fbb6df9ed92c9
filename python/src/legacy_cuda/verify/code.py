"""The probe's device code for a GPU: compiled, from the wheel of legacy-cuda-probe, or by NVRTC.

Machine code comes before PTX, and compiled code before code that is compiled here: the wheel has
the same bytes on every machine, needs no compiler, and runs with drivers that are older than the
compiler. ``docs/verify.md`` says why.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from legacy_cuda import catalog, fetch, paths
from legacy_cuda.capability import Capability, Target
from legacy_cuda.catalog.locks import LockedFile, load_lock
from legacy_cuda.errors import SurroundingsError, UserError
from legacy_cuda.verify.nvrtc import Nvrtc, NvrtcError

SOURCE = Path(__file__).with_name("probe.cu")
DISTRIBUTION = "legacy-cuda-probe"
PACKAGE = "legacy_cuda_probe"

_NAME = re.compile(r"(?:sm_\d{2,3}\.cubin|compute_\d{2,3}\.ptx)")
_LARGEST = 16 << 20


@dataclass(frozen=True)
class Code:
    """Device code: what it was made for and where it comes from."""

    image: bytes
    target: Target
    origin: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.image).hexdigest()


@dataclass(frozen=True)
class Wanted:
    """What the code is to run on. ``replay`` is the older capability whose code is wanted there.

    ``cuda`` is the version that the driver implements.
    """

    capability: Capability
    cuda: tuple[int, int]
    replay: Capability | None = None

    @property
    def compiled_for(self) -> Capability:
        return self.replay or self.capability


class Finder:
    """Looks for code, in the order of the module's description.

    Args:
        probe: a wheel or folder with compiled code to take instead of what is installed.
        download: whether NVRTC may be downloaded.
        use_compiled: False passes over compiled code.
        progress: told of a download.
    """

    def __init__(
        self,
        probe: Path | None = None,
        download: bool = True,
        use_compiled: bool = True,
        progress: fetch.Progress | None = None,
    ) -> None:
        self._download, self._progress = download, progress
        self._compiled: dict[str, bytes] = {}
        self._origin = ""
        if use_compiled:
            self._origin, self._compiled = read_probe(probe) if probe else installed()
        self._made: dict[Target, Code] = {}

    def find(self, wanted: Wanted) -> Code:
        """The code to run there.

        Raises:
            SurroundingsError: there is none; what was looked at and what to do.
        """
        chosen = choose(self._compiled, wanted)
        if chosen is not None:
            return Code(self._compiled[chosen.name], chosen.target, self._origin)
        kind = "compute" if wanted.replay else "sm"
        target = Target.parse(f"{kind}_{wanted.compiled_for.number}")
        if target not in self._made:
            self._made[target] = self._compile(target, wanted)
        return self._made[target]

    def _compile(self, target: Target, wanted: Wanted) -> Code:
        tried: list[str] = []
        for path in self._libraries(wanted, tried):
            try:
                nvrtc = Nvrtc(path)
                version = catalog.dotted(nvrtc.version)
                if target.capability not in nvrtc.capabilities:
                    tried.append(f"{path}: NVRTC {version} does not compile for {target}")
                    continue
                if nvrtc.version[0] > wanted.cuda[0]:
                    tried.append(f"{path}: NVRTC {version} is newer than the driver")
                    continue
                image = nvrtc.compile(SOURCE.read_text(encoding="utf-8"), target)
            except NvrtcError as error:
                tried.append(str(error))
                continue
            if target.kind == "ptx" and not knows(wanted.cuda, image):
                tried.append(f"{path}: this driver does not know the PTX of NVRTC {version}")
                continue
            return Code(image, target, f"NVRTC {version}")
        none = "the package legacy-cuda-probe is not installed, or has no code for it"
        raise SurroundingsError(
            f"there is no probe for capability {wanted.compiled_for}",
            "\n".join([none, *(tried or ["no NVRTC was found"])]),
            "name the wheel of legacy-cuda-probe with --probe, or let NVRTC be downloaded",
        )

    def _libraries(self, wanted: Wanted, tried: list[str]) -> Iterator[Path]:
        """NVRTCs of this machine, then one that is downloaded."""
        yield from libraries()
        locked = nvrtc_wheel(wanted.compiled_for)
        if locked is None:
            return
        remote = fetch.Remote(
            locked.package, locked.version, locked.name, locked.sha256, locked.size
        )
        if not self._download and not fetch.cached_path(remote).is_file():
            tried.append(f"{locked.name} is not in the cache, and is not to be downloaded")
            return
        yield unpacked(fetch.download(remote, progress=self._progress))


@dataclass(frozen=True)
class Chosen:
    """A file of the compiled probe."""

    name: str
    target: Target


def choose(files: dict[str, bytes], wanted: Wanted) -> Chosen | None:
    """The file for a GPU, of those named ``sm_61.cubin`` and ``compute_61.ptx``; None: none is.

    In a replay it is the PTX of that capability and no other.
    """
    fits = []
    for name in files:
        target = Target.parse(name.partition(".")[0])
        if wanted.replay is not None:
            if target.kind == "ptx" and target.capability == wanted.replay:
                fits.append(Chosen(name, target))
        elif target.runs_on(wanted.capability):
            fits.append(Chosen(name, target))
    fits = [
        item for item in fits if item.target.kind == "sass" or knows(wanted.cuda, files[item.name])
    ]
    return max(
        fits, key=lambda item: (item.target.kind == "sass", item.target.capability), default=None
    )


def knows(cuda: tuple[int, int], text: bytes) -> bool:
    """Whether a driver of that CUDA version compiles this PTX: if its ISA is not newer."""
    from legacy_cuda.devicecode import (
        DeviceCodeError,
        ptx,
    )  # with what it takes to read fat binaries

    try:
        found = ptx.parse_header(text)
    except DeviceCodeError:
        return False
    older = [toolkit.ptx_isa for version, toolkit in catalog.toolkits().items() if version <= cuda]
    return bool(older) and found.isa <= max(older)


def installed() -> tuple[str, dict[str, bytes]]:
    """The package legacy-cuda-probe of this Python: its name and version, and its files."""
    from importlib import metadata

    try:
        found = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "", {}
    _, files = read_probe(Path(str(found.locate_file(PACKAGE))))
    return f"{DISTRIBUTION} {found.version}", files


def read_probe(path: Path) -> tuple[str, dict[str, bytes]]:
    """The device code in a wheel or a folder, and what to call it.

    Raises:
        UserError: it cannot be read, or has none.
    """
    found: dict[str, bytes] = {}
    try:
        if path.is_dir():
            for file in sorted(path.iterdir()):
                if _NAME.fullmatch(file.name):
                    found[file.name] = file.read_bytes()
        else:
            with zipfile.ZipFile(path) as wheel:
                for member in wheel.infolist():
                    folder, _, name = member.filename.partition("/")
                    if folder == PACKAGE and _NAME.fullmatch(name) and member.file_size < _LARGEST:
                        found[name] = wheel.read(member)
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise UserError(
            f"{path} cannot be read", str(error), "name a wheel of legacy-cuda-probe, or its folder"
        ) from error
    if not found:
        raise UserError(
            f"{path} has no device code of the probe",
            "there is no file such as sm_61.cubin or compute_61.ptx in it",
            "name a wheel of legacy-cuda-probe, or its folder",
        )
    return path.name, found


def libraries() -> Iterator[Path]:
    """NVRTCs here: of this Python's packages, of environments of ours, of installed toolkits.

    CUDA_HOME and CUDA_PATH come first; no other place is looked at.
    """
    roots = [
        Path(value) / folder
        for name in ("CUDA_HOME", "CUDA_PATH")
        if (value := os.environ.get(name))
        for folder in ("lib64", "lib")
    ]
    packages = [Path(part) for part in sys.path if part.endswith("-packages")]
    packages += sorted(paths.environments_directory().glob("*/lib/python3*/site-packages"))
    for place in packages:
        # wheels of CUDA 13 have their libraries in a common folder
        roots += [place / "nvidia" / "cuda_nvrtc" / "lib", *place.glob("nvidia/cu[0-9]*/lib")]
    roots += [root / "lib64" for root in sorted(Path("/usr/local").glob("cuda*"), reverse=True)]
    seen: set[Path] = set()
    for root in roots:
        for path in _real(root.glob("libnvrtc.so*")):
            if path not in seen:
                seen.add(path)
                yield path


def _real(files: Iterable[Path]) -> list[Path]:
    """Without links to one another, and without NVRTC's second build with another libstdc++."""
    return sorted({path.resolve() for path in files if ".alt." not in path.name})


def nvrtc_wheel(capability: Capability) -> LockedFile | None:
    """The smallest NVRTC among the stacks' pinned wheels that compiles for a capability."""
    found: dict[str, LockedFile] = {}
    for stack in catalog.stacks():
        toolkit = catalog.toolkits()[stack.cuda]
        if not toolkit.capability_min <= capability <= toolkit.capability_max:
            continue
        for package in load_lock(stack.lock).packages:
            if package.name.startswith("nvidia-cuda-nvrtc"):
                found |= {file.sha256: file for file in package.files}
    return min(found.values(), key=lambda file: file.size, default=None)


def unpacked(wheel: Path) -> Path:
    """The NVRTC of a wheel, unpacked into the cache if it is not there.

    Raises:
        SurroundingsError: the disk failed, or the wheel has none.
    """
    folder = paths.cache_directory() / "nvrtc" / wheel.parent.name
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with fetch.locked(folder.parent / ".lock"):
            if not folder.is_dir():
                making = folder.with_name(f".new-{folder.name}")
                shutil.rmtree(making, ignore_errors=True)  # of a run that was killed
                making.mkdir()
                with zipfile.ZipFile(wheel) as file:
                    for member in file.infolist():
                        base = member.filename.rpartition("/")[2]
                        if base.startswith("libnvrtc") and ".so" in base:
                            (making / base).write_bytes(file.read(member))
                making.rename(folder)
    except OSError as error:
        raise SurroundingsError("NVRTC could not be unpacked", str(error)) from error
    found = _real(folder.glob("libnvrtc.so*"))
    if not found:
        raise SurroundingsError(f"{wheel.name} has no NVRTC in it", str(folder))
    return found[-1]
