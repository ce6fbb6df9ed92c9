"""From device code to a verdict: can these libraries run on a GPU of that capability?

Pure functions. The unit is the library and in it the container: a union over the targets in a file
says nothing, because each kernel has to be there for the GPU at hand. What counts and what does
not is set in ``catalog/data/audit.toml``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Literal

from legacy_cuda import catalog
from legacy_cuda.capability import Capability, Target
from legacy_cuda.devicecode.scan import FileCode

Linkage = Literal["loadable", "link-time", "stub"]
State = Literal["serves", "partial", "stray", "none", "empty"]
Outcome = Literal["runs", "runs-through-jit", "runs-with-limits", "does-not-run", "no-device-code"]

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
    out. ``driver`` is the oldest branch that compiles the PTX it needs, where it needs any."""

    path: str
    role: catalog.Role
    feature: str | None
    group: str | None
    state: State
    containers: int
    sass: int
    jit: int
    driver: str | None

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
    """The audit rule for a library; paths in an environment count from its site-packages."""
    below = path.rpartition("site-packages/")[2]
    for rule in catalog.audit_rules().libraries:
        if fnmatchcase(below, rule.path):
            return rule
    return catalog.LibraryRule(path, "core", None, None)


def judge_library(library: Library, capability: Capability) -> LibraryVerdict:
    """How one library serves a capability."""
    rules = catalog.audit_rules()
    rule = rule_for(library.path)
    total = sass = jit = 0
    drivers: set[str] = set()
    for group in library.groups:
        if group.linkage != "loadable" or all(_target(label)[0] is None for label in group.code):
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
    elif serving < rules.stray_count and serving * 100 < rules.stray_share_percent * total:
        state = "stray"
    else:
        state = "partial"
    needed = max(drivers, key=catalog.version_tuple) if drivers and state != "stray" else None
    return LibraryVerdict(
        path=library.path,
        role=rule.role,
        feature=rule.feature,
        group=rule.group,
        state=state,
        containers=total,
        sass=sass,
        jit=jit,
        driver=needed,
    )


def judge(
    libraries: Iterable[Library], capability: Capability, torch_cuda: tuple[int, int] | None = None
) -> Verdict:
    """Whether what these libraries belong to runs on a GPU of this capability.

    ``missing`` names the libraries without which it does not run; ``lost`` the features, kernels
    and alternatives that are not there. Where the CUDA version of the PyTorch beside them is known,
    of alternatives by CUDA version only that one counts.
    """
    verdicts = tuple(judge_library(library, capability) for library in libraries)
    missing: list[str] = []
    lost: list[str] = []
    groups: dict[str, list[LibraryVerdict]] = {}
    counted = False
    for verdict in verdicts:
        if verdict.state == "empty" or verdict.role == "tool":
            continue
        counted = True
        bad = verdict.state in ("none", "stray")
        if verdict.role == "alternative":
            groups.setdefault(f"{_folder(verdict.path)}: {verdict.group}", []).append(verdict)
        elif verdict.role == "feature":
            if bad and verdict.feature and verdict.feature not in lost:
                lost.append(verdict.feature)
        elif bad:
            missing.append(verdict.path)
        elif verdict.state == "partial" and verdict.role == "core":
            absent = verdict.containers - verdict.serving
            lost.append(
                f"{absent} of {verdict.containers} kernel groups in {_name(verdict.path)}, "
                "made for other GPUs only"
            )
    for members in groups.values():
        if torch_cuda is not None:
            loaded = f"cuda{torch_cuda[0]}{torch_cuda[1]}."
            members = [item for item in members if loaded in _name(item.path)] or members
        absent_members = [member for member in members if member.state in ("none", "stray")]
        if len(absent_members) == len(members):
            missing += [member.path for member in members]
        elif absent_members:
            lost.append(", ".join(_name(member.path) for member in absent_members))
    drivers = {
        verdict.driver
        for verdict in verdicts
        if verdict.driver and verdict.role in ("core", "dispatching")
    }
    outcome: Outcome
    if not counted:
        outcome = "no-device-code"
    elif missing:
        outcome = "does-not-run"
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
        driver=max(drivers, key=catalog.version_tuple) if drivers and not missing else None,
    )


def describe(verdict: Verdict) -> str:
    """The verdict in one line of words."""
    if verdict.outcome == "no-device-code":
        return "holds no device code: nothing in it was compiled for a GPU"
    if verdict.outcome == "does-not-run":
        parts = []
        for path in verdict.missing[:3]:
            library = next(item for item in verdict.libraries if item.path == path)
            parts.append(
                f"{_name(path)} has code for it in {library.serving} of "
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


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def everywhere(library: Library) -> frozenset[str]:
    """The targets that every container of a library holds (stubs left out), as labels."""
    sets = [set(group.code) for group in library.groups if group.linkage == "loadable"]
    return frozenset(set.intersection(*sets)) if sets else frozenset()
