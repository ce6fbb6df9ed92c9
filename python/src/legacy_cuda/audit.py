"""From device code to a verdict: can these libraries run on a GPU of that capability?

Pure functions. The unit is the library and in it the container: a union over the targets in a file
says nothing, because each kernel has to be there for the GPU at hand. What counts and what does
not is set in ``catalog/data/audit.toml``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, Literal

from legacy_cuda import catalog
from legacy_cuda.capability import Capability, Target
from legacy_cuda.devicecode.scan import FileCode

Linkage = Literal["loadable", "link-time", "stub"]
State = Literal["serves", "partial", "stray", "none", "empty"]
Outcome = Literal["runs", "runs-through-jit", "runs-with-limits", "does-not-run", "no-device-code"]

# Where Python packages lie: what follows the last of these is the path below site-packages. The
# ``.data`` folders are those of unpacked wheels (PyPA, "Binary distribution format").
_SITE = re.compile(r".*(?:site-packages|dist-packages|[^/]+\.data/(?:purelib|platlib))/")

_TORCH_CUDA = re.compile(r"^cuda(?:\s*:[^=]+)?\s*=\s*['\"](\d{1,3})\.(\d{1,3})['\"]", re.MULTILINE)

_HOLLOW = {
    "link-time": "code for a device linker",
    "lto": "intermediate code for link-time optimisation",
    "stub": "containers without a kernel",
}

GOOD: frozenset[Outcome] = frozenset(
    {"runs", "runs-through-jit", "runs-with-limits", "no-device-code"}
)


@dataclass(frozen=True, slots=True)
class Group:
    """``count`` containers of a library that hold the same code, as labels (``sm_61``,
    ``compute_80@8.5``)."""

    count: int
    linkage: Linkage
    code: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Library:
    """The device code of one file, as it is kept in evidence. Size in bytes."""

    path: str
    size: int
    format: str
    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class LibraryVerdict:
    """How one library serves one capability: numbers of containers, stubs and link-time code left
    out. ``driver`` is the oldest branch that compiles the PTX it needs, where it needs any.
    ``hollow`` says of what else it consists where there are none: link-time, lto, stub."""

    path: str
    role: catalog.Role
    feature: str | None
    group: str | None
    state: State
    containers: int
    sass: int
    jit: int
    driver: str | None
    hollow: tuple[str, ...] = ()

    @property
    def serving(self) -> int:
        return self.sass + self.jit


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on a set of libraries for one capability."""

    capability: Capability
    outcome: Outcome
    libraries: tuple[LibraryVerdict, ...]
    lost: tuple[str, ...]
    missing: tuple[str, ...]
    driver: str | None

    @property
    def good(self) -> bool:
        return self.outcome in GOOD


def summarise(files: Iterable[FileCode]) -> tuple[Library, ...]:
    """Reduce scanned files to what evidence keeps; files without device code are left out."""
    libraries = []
    for file in files:
        if not file.containers:
            continue
        counts: Counter[tuple[Linkage, tuple[str, ...]]] = Counter()
        for placed in file.containers:
            code = sorted({entry.label for entry in placed.container.entries}, key=label_order)
            linkage: Linkage = placed.linkage
            if placed.container.stub and linkage == "loadable":
                linkage = "stub"
            counts[linkage, tuple(code)] += 1
        groups = tuple(
            Group(count, linkage, code)
            for (linkage, code), count in sorted(
                counts.items(), key=lambda item: (item[0][0], -item[1], item[0][1])
            )
        )
        libraries.append(Library(file.path, file.size, file.format, groups))
    return tuple(sorted(libraries, key=lambda library: library.path))


def cuda_of_torch(text: str) -> tuple[int, int] | None:
    """The CUDA version that the text of PyTorch's ``torch/version.py`` names."""
    match = _TORCH_CUDA.search(text)
    return (int(match[1]), int(match[2])) if match else None


def read_groups(rows: Iterable[Mapping[str, Any]]) -> tuple[Group, ...]:
    """Groups out of JSON, as evidence and manifests keep them.

    Raises:
        KeyError, TypeError: the rows are not of that form.
    """
    return tuple(Group(row["count"], row["linkage"], tuple(row["code"])) for row in rows)


def label_order(label: str) -> tuple[str, int, str]:
    """What to sort labels by: SASS and PTX apart, then by capability."""
    kind, _, rest = label.partition("_")
    digits = "".join(char for char in rest.partition("@")[0] if char.isdigit())
    return kind, int(digits or 0), rest


@cache
def _target(label: str) -> tuple[Target | None, tuple[int, int]]:
    """The target of a label and its PTX ISA version ((0, 0) for SASS)."""
    text, _, isa = label.partition("@")
    if not text.startswith(("sm_", "compute_")):
        return None, (0, 0)
    version = tuple(int(part) for part in isa.split(".")) if isa else (0, 0)
    return Target.parse(text), (version[0], version[1])


@cache
def _serves(
    code: tuple[str, ...], capability: Capability
) -> tuple[Literal["sass", "jit", ""], str]:
    """How a container with this code serves the capability, and the driver branch PTX needs."""
    oldest: catalog.Branch | None = None
    for label in code:
        target, isa = _target(label)
        if target is None or not target.runs_on(capability):
            continue
        if target.kind == "sass":
            return "sass", ""
        branch = catalog.driver_for_ptx(isa, capability)
        if branch and (oldest is None or branch.latest_version < oldest.latest_version):
            oldest = branch
    return ("jit", oldest.branch) if oldest else ("", "")


def rule_for(path: str) -> catalog.LibraryRule:
    """The audit rule for a library.

    A path counts from its site-packages (or the like). Where no rule fits it, as outside of Python
    packages, the name of the file alone decides, by those rules that name a library (``lib...``).
    """
    rules = catalog.audit_rules().libraries
    below = below_site(path)
    for rule in rules:
        if fnmatchcase(below, rule.path):
            return rule
    name = _name(path)
    for rule in rules:
        pattern = _name(rule.path)
        if pattern.startswith("lib") and fnmatchcase(name, pattern):
            return rule
    return catalog.LibraryRule(path, "core", None, None)


def below_site(path: str) -> str:
    """A path from the site-packages on that it lies in; the whole path where it lies in none."""
    match = _SITE.match(path)
    return path[match.end() :] if match else path


def judge_library(library: Library, capability: Capability) -> LibraryVerdict:
    """How one library serves a capability."""
    rules = catalog.audit_rules()
    rule = rule_for(library.path)
    every_kernel = rule.role in ("core", "alternative")
    least = rules.least_share_percent_core if every_kernel else rules.least_share_percent
    total = sass = jit = 0
    drivers: set[str] = set()
    hollow: set[str] = set()
    for group in library.groups:
        if group.linkage != "loadable":
            hollow.add(group.linkage)
            continue
        if all(_target(label)[0] is None for label in group.code):
            hollow.add("lto" if group.code else "stub")
            continue
        total += group.count
        how, driver = _serves(group.code, capability)
        if how == "sass":
            sass += group.count
        elif how == "jit":
            jit += group.count
            drivers.add(driver)
    serving = sass + jit
    state: State
    if not total:
        state = "empty"
    elif serving == total:
        state = "serves"
    elif not serving:
        state = "none"
    elif serving * 100 < least * total:
        state = "stray"
    else:
        state = "partial"
    # A library that picks its kernels needs no driver for the sake of some left-over PTX. Where
    # every kernel counts, so does every one that is only there as PTX.
    needs_jit = state in ("serves", "partial") and (every_kernel or jit * 100 >= least * total)
    return LibraryVerdict(
        path=library.path,
        role=rule.role,
        feature=rule.feature,
        group=rule.group,
        state=state,
        containers=total,
        sass=sass,
        jit=jit,
        driver=_newest(drivers) if needs_jit else None,
        hollow=() if total else tuple(sorted(hollow)),
    )


def judge(
    libraries: Iterable[Library], capability: Capability, torch_cuda: tuple[int, int] | None = None
) -> Verdict:
    """Whether what these libraries belong to runs on a GPU of this capability.

    ``missing`` names the libraries without which it does not run, by path, or says in words which
    is not there; ``lost`` the features, kernels and alternatives that are not there. Where the CUDA
    version of the PyTorch beside them is known, of alternatives by CUDA version only the one that
    is loaded for it counts.
    """
    verdicts = tuple(judge_library(library, capability) for library in libraries)
    missing: list[str] = []
    lost: list[str] = []
    drivers: set[str] = set()
    groups: dict[str, list[LibraryVerdict]] = {}
    counted = False
    for verdict in verdicts:
        if verdict.state == "empty" or verdict.role == "tool":
            continue
        counted = True
        bad = verdict.state in ("none", "stray")
        if verdict.role == "alternative":
            groups.setdefault(_folder(verdict.path), []).append(verdict)
            continue
        if verdict.role == "feature":
            if bad and verdict.feature and verdict.feature not in lost:
                lost.append(verdict.feature)
        elif bad:
            missing.append(verdict.path)
        if verdict.state == "partial" and not rule_for(verdict.path).picks_kernels:
            lost.append(_partly(verdict))
        if verdict.driver:
            drivers.add(verdict.driver)
    for folder, members in groups.items():
        if torch_cuda is not None:
            package = _name(below_site(folder)) or folder
            cuda = f"{torch_cuda[0]}.{torch_cuda[1]}"
            loaded = _loaded(members, torch_cuda)
            if loaded is None:
                missing.append(f"{package} has no library for CUDA {cuda}, which PyTorch uses here")
                continue
            members = [loaded]
            if _made_for(loaded) != torch_cuda:
                lost.append(
                    f"a library of {package} for CUDA {cuda} (newer releases of it take "
                    f"{_name(loaded.path)} instead, older ones fail)"
                )
        useful = [member for member in members if member.state in ("serves", "partial")]
        if not useful:
            missing += [member.path for member in members]
            continue
        absent = [member for member in members if member not in useful]
        if absent:
            lost.append(", ".join(_name(member.path) for member in absent))
        lost += [_partly(member) for member in useful if member.state == "partial"]
        needed = [member.driver for member in useful if member.driver]
        if len(needed) == len(useful):  # else one that needs no JIT can be had
            drivers.add(min(needed, key=catalog.version_tuple))
    outcome: Outcome
    if missing:
        outcome = "does-not-run"
    elif not counted:
        outcome = "no-device-code"
    elif lost:
        outcome = "runs-with-limits"
    elif drivers:
        outcome = "runs-through-jit"
    else:
        outcome = "runs"
    return Verdict(
        capability=capability,
        outcome=outcome,
        libraries=verdicts,
        lost=tuple(lost),
        missing=tuple(missing),
        driver=_newest(drivers) if not missing else None,
    )


def without(verdict: Verdict, absent: Iterable[tuple[str, str]]) -> Verdict:
    """The verdict when files are gone that were installed: pairs of path and distribution."""
    gone = tuple(
        f"{path} (listed in RECORD of {distribution}, not there)" for path, distribution in absent
    )
    if not gone:
        return verdict
    return replace(verdict, outcome="does-not-run", missing=(*gone, *verdict.missing), driver=None)


def describe(verdict: Verdict, owner: Mapping[str, str] | None = None) -> str:
    """The verdict in one line of words; ``owner`` maps library paths to distributions."""
    if verdict.outcome == "no-device-code":
        if any(item.state != "empty" for item in verdict.libraries):
            return "holds device code in tools only: nothing that a program loads"
        kinds = sorted({kind for item in verdict.libraries for kind in item.hollow})
        if kinds:
            words = " and ".join(_HOLLOW[kind] for kind in kinds)
            return f"holds only {words}: nothing a GPU runs as it is"
        return "holds no device code: nothing in it was compiled for a GPU"
    if verdict.outcome == "does-not-run":
        found = {item.path: item for item in verdict.libraries}
        parts = []
        for path in verdict.missing[:3]:
            library = found.get(path)
            if library is None:
                parts.append(path)
                continue
            came = f" [{owner[path]}]" if owner and owner.get(path) else ""
            parts.append(
                f"{_name(path)}{came} has code for it in {library.serving} of "
                f"{library.containers} containers"
            )
        more = len(verdict.missing) - 3
        return "does not run: " + "; ".join(parts) + (f"; and {more} more" if more > 0 else "")
    text = "runs"
    if verdict.lost:
        text += " without " + "; ".join(verdict.lost)
    if verdict.driver:
        text += f"; part of it through the driver's JIT (branch {verdict.driver} or newer)"
    return text


def _made_for(alternative: LibraryVerdict) -> tuple[int, int] | None:
    """The CUDA version in a name like ``libx_cuda126.so``: the last digit is the minor version."""
    match = re.search(r"cuda(\d+)(\d)\.", _name(alternative.path))
    return (int(match[1]), int(match[2])) if match else None


def _loaded(members: list[LibraryVerdict], torch_cuda: tuple[int, int]) -> LibraryVerdict | None:
    """Which alternative is loaded beside a PyTorch with that CUDA version, or None.

    The one made for it; else, as bitsandbytes documents it for its newer releases
    (``get_cuda_bnb_library_path``), of the same major version the next older, else the next newer.
    """
    made = {version: member for member in members if (version := _made_for(member))}
    same = sorted(version for version in made if version[0] == torch_cuda[0])
    older = [version for version in same if version <= torch_cuda]
    if not same:
        return None
    return made[older[-1] if older else same[0]]


def _partly(verdict: LibraryVerdict) -> str:
    absent = verdict.containers - verdict.serving
    part = (
        f"{absent} of {verdict.containers} kernel groups in {_name(verdict.path)}, "
        "made for other GPUs only"
    )
    return f"part of {verdict.feature}: {part}" if verdict.feature else part


def _newest(branches: set[str]) -> str | None:
    return max(branches, key=catalog.version_tuple) if branches else None


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def everywhere(library: Library) -> frozenset[str]:
    """The targets that every container of a library holds (stubs left out), as labels."""
    sets = [set(group.code) for group in library.groups if group.linkage == "loadable"]
    return frozenset(set.intersection(*sets)) if sets else frozenset()
