"""From GPUs and an engine to a stack, or to a refusal that says why and what works instead.

Pure: the answer depends on the catalog and the arguments only. A stack is the intersection of
windows, each a set that can only shrink when a GPU is added:

1. every GPU's rule for the engine,
2. the (driver branch, kernel module flavour) pairs that serve every GPU: one machine loads one,
3. the stacks whose libraries carry code for every GPU, and whose CUDA the driver can run.

From what is left, the newest driver and the newest stack are taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from legacy_cuda import catalog
from legacy_cuda.capability import Capability
from legacy_cuda.catalog import (
    Branch,
    Engine,
    EngineRule,
    Flavour,
    Gpu,
    StackFacts,
    Toolkit,
    dotted,
)

USUAL_ENGINE = "torch"
"""What is resolved for where nobody says; a name of the catalog."""


@dataclass(frozen=True, slots=True)
class Driver:
    """A driver branch with one flavour of its kernel module."""

    branch: Branch
    flavour: Flavour


@dataclass(frozen=True, slots=True)
class Reason:
    """Why something was chosen: the thing, the choice, the evidence."""

    subject: str
    choice: str
    because: str


@dataclass(frozen=True, slots=True)
class Stack:
    """What runs these GPUs with this engine, everything named, every choice with its reason."""

    gpus: tuple[Gpu, ...]
    engine: Engine
    facts: StackFacts
    driver: Driver
    toolkit: Toolkit
    reasons: tuple[Reason, ...]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """``p40``, ``p4000+gtx1060-6gb``; one name for any number of equal cards. With another
        engine than the usual one, ``p40-llama-cpp``."""
        cards = "+".join(dict.fromkeys(gpu.name for gpu in self.gpus))
        return cards if self.engine.name == USUAL_ENGINE else f"{cards}-{self.engine.name}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """There is no such stack: the rule that forbids it, the evidence, the nearest that works.

    ``split`` gives groups of these GPUs that work in a machine of their own, where that is a way.
    """

    gpus: tuple[Gpu, ...]
    engine: Engine
    rule: str
    because: tuple[str, ...]
    instead: tuple[str, ...]
    split: tuple[tuple[str, ...], ...] = ()


def drivers_for(capabilities: Iterable[Capability]) -> list[Driver]:
    """Every driver that serves all of them, oldest branch first; proprietary before open."""
    wanted = set(capabilities)
    return [
        Driver(branch, module.flavour)
        for branch in catalog.branches()
        for module in branch.modules
        if all(module.serves(capability) for capability in wanted)
    ]


def runs_cuda(driver: Driver, cuda: tuple[int, int]) -> bool:
    """Whether programs built with that CUDA release run, by minor-version compatibility."""
    least = catalog.toolkits()[cuda].driver_min
    return driver.branch.latest_version >= catalog.version_tuple(least)


def runs_stack(driver: Driver, stack: StackFacts, capabilities: Iterable[Capability]) -> bool:
    """Whether the driver runs the stack's CUDA, and compiles the PTX these capabilities need."""
    needed = [stack.jit_branch(capability) for capability in capabilities]
    return runs_cuda(driver, stack.cuda) and all(
        branch is None or int(driver.branch.branch) >= int(branch) for branch in needed
    )


def stacks_of(engine: Engine) -> list[StackFacts]:
    """The stacks with an engine, oldest first."""
    return [stack for stack in catalog.stacks() if stack.engine == engine.name]


def stacks_for(
    engine: Engine, capabilities: Iterable[Capability], drivers: Sequence[Driver]
) -> list[StackFacts]:
    """Every stack with the engine that carries code for all of them and that one of the drivers
    can run."""
    wanted = set(capabilities)
    return [
        stack
        for stack in stacks_of(engine)
        if wanted <= set(stack.covers)
        and any(runs_stack(driver, stack, wanted) for driver in drivers)
    ]


def resolve(gpus: Sequence[Gpu], engine: Engine) -> Stack | Refusal:
    """The stack for these GPUs in one machine, or the refusal.

    Raises:
        ValueError: no GPU was given.
    """
    if not gpus:
        raise ValueError("resolve needs at least one GPU")
    ordered = tuple(sorted(gpus, key=lambda gpu: (gpu.capability, gpu.name)))
    if not any(gpu.legacy for gpu in ordered):
        return _not_legacy(ordered, engine)
    by_engine = _refused_by_engine(ordered, engine)
    if by_engine is not None:
        return by_engine
    wanted = {gpu.capability for gpu in ordered}
    drivers = drivers_for(wanted)
    if not drivers:
        return _refused_by_driver(ordered, engine)
    candidates = stacks_for(engine, wanted, drivers)
    if not candidates:
        return _refused_by_coverage(ordered, engine, drivers)
    oldest = min(wanted)
    newest_lock = candidates[-1].lock
    same_lock = [stack for stack in candidates if stack.lock == newest_lock]
    facts = next((stack for stack in same_lock if oldest in stack.home), same_lock[-1])
    driver = [driver for driver in drivers if runs_stack(driver, facts, wanted)][-1]
    toolkit = catalog.toolkits()[facts.toolkit]
    return Stack(
        gpus=ordered,
        engine=engine,
        facts=facts,
        driver=driver,
        toolkit=toolkit,
        reasons=tuple(_reasons(ordered, engine, facts, driver, drivers, candidates, toolkit)),
        notes=tuple(_notes(ordered, facts, driver)),
    )


def _names(gpus: Iterable[Gpu]) -> str:
    return ", ".join(dict.fromkeys(f"{gpu.product} ({gpu.capability})" for gpu in gpus))


def _not_legacy(gpus: tuple[Gpu, ...], engine: Engine) -> Refusal:
    return Refusal(
        gpus,
        engine,
        "not-legacy",
        (f"{_names(gpus)}: newer than Volta, so current stock builds carry code for it",),
        (f"install {engine.title} as its own documentation says; nothing here is needed",),
    )


def _refused_by_engine(gpus: tuple[Gpu, ...], engine: Engine) -> Refusal | None:
    verdicts = [(gpu, engine.rule(gpu.capability)) for gpu in gpus]
    bad = [(gpu, rule) for gpu, rule in verdicts if rule.verdict == "refused"]
    kind = "engine-refused"
    if not bad:
        bad = [(gpu, rule) for gpu, rule in verdicts if rule.verdict == "not-packaged"]
        kind = "engine-not-packaged"
        if not any(gpu.legacy for gpu, _ in bad):
            return None  # newer cards beside a legacy one: driver and coverage decide
    because: dict[str, None] = {}
    instead: dict[str, None] = {}
    for gpu, rule in bad:
        because[f"{engine.title} on {_names([gpu])}: {rule.reason}"] = None
        instead |= dict.fromkeys(alternatives(rule, gpu))
    rest = [gpu for gpu in gpus if gpu not in [bad_gpu for bad_gpu, _ in bad]]
    if rest and any(gpu.legacy for gpu in rest) and isinstance(resolve(rest, engine), Stack):
        instead[f"leave it out: {' '.join(gpu.name for gpu in rest)} alone works"] = None
    return Refusal(gpus, engine, kind, tuple(because), tuple(instead))


def alternatives(rule: EngineRule, gpu: Gpu) -> Iterator[str]:
    """What a rule says to take instead, but for engines that are refused on this GPU themselves."""
    for item in rule.instead:
        if " " in item:
            yield item
            continue
        engine = catalog.find_engine(item)
        verdict = engine.rule(gpu.capability).verdict
        if verdict == "offered":
            yield f"{engine.title}: legacy-cuda resolve {gpu.name} --engine {engine.name}"
        elif verdict == "not-packaged":
            yield f"{engine.title} on {gpu.name} (not packaged here yet)"


def _split(gpus: Sequence[Gpu], engine: Engine) -> tuple[tuple[str, ...], ...]:
    """Put the GPUs into as few machines as a simple first fit finds, oldest first."""
    machines: list[list[Gpu]] = []
    for gpu in sorted(gpus, key=lambda item: (item.capability, item.name)):
        for machine in machines:
            together = [*machine, gpu]
            capabilities = {member.capability for member in together}
            drivers = drivers_for(capabilities)
            legacy = any(member.legacy for member in together)
            if drivers and (not legacy or stacks_for(engine, capabilities, drivers)):
                machine.append(gpu)
                break
        else:
            machines.append([gpu])
    return tuple(tuple(gpu.name for gpu in machine) for machine in machines)


def _split_text(split: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    if len(split) < 2:
        return ()
    parts = "; ".join(" with ".join(machine) for machine in split)
    return (f"{len(split)} machines (or virtual machines with passthrough): {parts}",)


def _refused_by_driver(gpus: tuple[Gpu, ...], engine: Engine) -> Refusal:
    because = []
    common: set[str] | None = None
    for capability in sorted({gpu.capability for gpu in gpus}):
        drivers = drivers_for([capability])
        served = {driver.branch.branch for driver in drivers}
        common = served if common is None else common & served
        flavours = " or ".join(dict.fromkeys(driver.flavour for driver in drivers))
        first, last = drivers[0].branch.branch, drivers[-1].branch.branch
        span = f"branch {first}" if first == last else f"branches {first} to {last}"
        members = _names(gpu for gpu in gpus if gpu.capability == capability)
        because.append(f"{members}: {span}, {flavours} kernel module")
    if common:
        rule = "kernel-module-flavour"
        because.append(
            f"branch {max(common, key=int)} knows all of them, but one machine loads one flavour "
            "of the kernel module, and no flavour serves all of them"
        )
    else:
        rule = "driver-branch"
        because.append("a machine runs one driver, and no branch serves all of them")
    split = _split(gpus, engine)
    return Refusal(gpus, engine, rule, tuple(because), _split_text(split), split)


def _refused_by_coverage(
    gpus: tuple[Gpu, ...], engine: Engine, drivers: Sequence[Driver]
) -> Refusal:
    wanted = {gpu.capability for gpu in gpus}
    because = []
    for stack in {stack.lock: stack for stack in stacks_of(engine)}.values():
        absent = sorted(wanted - set(stack.covers))
        if absent:
            texts = ", ".join(str(capability) for capability in absent)
            because.append(f"{stack.lock}: no code for capability {texts}")
        elif not any(runs_cuda(driver, stack.cuda) for driver in drivers):
            least = catalog.toolkits()[stack.cuda].driver_min
            because.append(
                f"{stack.lock}: CUDA {dotted(stack.cuda)} needs driver {least} or newer, "
                f"these GPUs end with branch {drivers[-1].branch.branch}"
            )
        else:
            branch, capability = max((int(stack.jit_branch(item) or 0), item) for item in wanted)
            because.append(
                f"{stack.lock}: its PTX for {capability} needs driver branch {branch} or newer, "
                f"these GPUs end with branch {drivers[-1].branch.branch}"
            )
    split = _split(gpus, engine)
    return Refusal(gpus, engine, "coverage", tuple(because), _split_text(split), split)


def _reasons(
    gpus: tuple[Gpu, ...],
    engine: Engine,
    facts: StackFacts,
    driver: Driver,
    drivers: Sequence[Driver],
    candidates: Sequence[StackFacts],
    toolkit: Toolkit,
) -> Iterable[Reason]:
    branch = driver.branch
    newer = [item for item in catalog.branches() if item.latest_version > branch.latest_version]
    one = len(gpus) == 1
    ignored = "this GPU" if one else "at least one of these GPUs"
    ends = f"; {newer[0].branch} and newer ignore {ignored}" if newer else ""
    known = len({item.branch.branch for item in drivers})
    yield Reason(
        "driver",
        f"{branch.branch} (newest release known: {branch.latest})",
        (f"the newest of {known} branches that serve " if known > 1 else "the only branch for ")
        + f"{_names(gpus)}{ends} [{branch.support}]",
    )
    without_gsp = [gpu for gpu in gpus if not gpu.facts.open_kernel_module]
    yield Reason(
        "kernel module",
        driver.flavour,
        f"{_names(without_gsp)}: no GPU System Processor, which the open module needs"
        if driver.flavour == "proprietary"
        else "all of these GPUs run with the open module",
    )
    needed = catalog.toolkits()[facts.cuda].driver_min
    newest = all(stack.lock == facts.lock for stack in stacks_of(engine)[-1:])
    dropped = "" if newest else "; the next one in the catalog has no code for at least one of them"
    if len({gpu.capability for gpu in gpus}) > 1 and not newest:
        rejected = [stack for stack in stacks_of(engine) if stack not in candidates]
        later = [stack for stack in rejected if stack.cuda > facts.cuda]
        if later and {gpu.capability for gpu in gpus} <= set(later[0].covers):
            dropped = (
                f"; {later[0].lock} needs driver "
                f"{catalog.toolkits()[later[0].cuda].driver_min} or newer"
            )
    yield Reason(
        "stack",
        f"{facts.name} ({facts.lock}, CUDA {dotted(facts.cuda)})",
        "the newest whose libraries carry code (but for features that up names) for "
        f"{', '.join(str(item) for item in sorted({gpu.capability for gpu in gpus}))}{dropped}",
    )
    jit = [
        f"what {capability} runs through the driver's JIT needs branch {needed_branch} or newer"
        for capability in sorted({gpu.capability for gpu in gpus})
        if (needed_branch := facts.jit_branch(capability))
    ]
    yield Reason(
        "CUDA runtime",
        dotted(facts.cuda),
        "; ".join([f"needs driver {needed} or newer (minor-version compatibility)", *jit]),
    )
    yield Reason(
        "toolkit for builds",
        dotted(toolkit.version),
        f"its nvcc targets {toolkit.capability_min} to {toolkit.capability_max}; "
        f"host compiler gcc {toolkit.gcc_max} or older"
        + (f", glibc older than {toolkit.glibc_below}" if toolkit.glibc_below else ""),
    )
    if facts.patched:
        yield Reason(
            "patched",
            ", ".join(facts.patched),
            "the published wheels with our patches, rebuilt on this machine in seconds",
        )
    if facts.compiled:
        yield Reason(
            "compiled",
            ", ".join(facts.compiled),
            f"for {', '.join(str(item) for item in sorted({gpu.capability for gpu in gpus}))} by "
            f"the pinned CUDA {dotted(facts.toolkit)} toolchain: from an index of built wheels, "
            "or on this machine",
        )
    yield Reason(
        "Python",
        ", ".join(sorted(facts.pythons, key=catalog.version_tuple)),
        "the lock has wheels for these",
    )


def _notes(gpus: tuple[Gpu, ...], facts: StackFacts, driver: Driver) -> Iterable[str]:
    branch = driver.branch
    if branch.kernel_below and branch.kernel_fixed_by:
        yield (
            f"driver {branch.branch} needs release {branch.kernel_fixed_by} to compile on Linux "
            f"{branch.kernel_below} and newer"
        )
    elif branch.kernel_below:
        yield (
            f"driver {branch.branch} may not compile on Linux {branch.kernel_below} and newer: "
            "hold an older kernel"
        )
    if "unmaintained" in branch.support:
        yield f"driver {branch.branch} gets no security fixes any more"
    for gpu in dict.fromkeys(gpus):
        if gpu.dies > 1:
            yield (
                f"{gpu.product}: {gpu.dies} dies, each a GPU of its own with "
                f"{gpu.memory_mib} MiB; no model larger than one die without splitting it"
            )
        if gpu.cooling == "passive":
            yield f"{gpu.product}: passive, needs a duct and a fan outside a server chassis"
    for capability in sorted({gpu.capability for gpu in gpus}):
        if facts.torch_compile_min is not None and capability < facts.torch_compile_min:
            yield (
                f"{capability}: torch.compile does not work, its Triton needs "
                f"{facts.torch_compile_min}; eager PyTorch does"
            )
    for can in dict.fromkeys(gpu.facts for gpu in gpus if gpu.legacy):
        if can.fp16_fp32_ratio == "none":
            yield f"{can.capability}: no fp16 arithmetic; fp16 storage with fp32 arithmetic"
        elif can.fp16_fp32_ratio and can.fp16_fp32_ratio.startswith("1:"):
            yield (
                f"{can.capability}: fp16 arithmetic at {can.fp16_fp32_ratio} of fp32; "
                "store in fp16, compute in fp32" + (" or int8 (dp4a)" if can.dp4a else "")
            )
