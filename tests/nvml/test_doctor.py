"""The doctor's rules about what NVML says: on the stand-in's machines, and trees like theirs.

No GPU has a part in this; tests/nvml/standin.py says what the stand-in is.
"""

from __future__ import annotations

import json
import tarfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import GOOD, TODAY, Machine

from legacy_cuda import catalog, nvml
from legacy_cuda.cli import main
from legacy_cuda.doctor import examine as examining
from legacy_cuda.doctor import live
from legacy_cuda.doctor.cards import cards
from legacy_cuda.doctor.diagnosis import changes, diagnose
from legacy_cuda.doctor.facts import Answer, Fact, Facts, LoadedModel
from legacy_cuda.doctor.place import Place
from legacy_cuda.doctor.probes import nvml as probe
from legacy_cuda.nvml import Device, Snapshot
from tests.nvml import standin
from tests.nvml.standin import Standin

Start = Callable[[Any], Standin]
PATIENCE = 20.0  # seconds: more than a reader needs on a machine that is busy with other things
HELD = [{"pid": 4711, "memory_mib": 8000}]
IDLE: dict[str, Any] = {"processes": HELD, "memory_used_mib": 8000, "throttle": []}


def one(gpu: str, branch: str = "580", **keys: Any) -> dict[str, Any]:
    """A machine with one card."""
    return {"driver_branch": branch, "card": [{"gpu": gpu, **keys}]}


def changed(name: str, card: int = 0, **keys: Any) -> dict[str, Any]:
    """A recorded machine with other keys of a card."""
    machine = standin.read(name)
    machine["card"][card].update(keys)
    return machine


def slow(gpu: str, **keys: Any) -> dict[str, Any]:
    """A machine whose driver takes its time."""
    hangs = {"nvmlDeviceGetHandleByIndex": 2}
    return one(gpu, **{"persistence": False, "hangs": hangs, **keys})


@dataclass(frozen=True)
class Running:
    """A machine, what its engines answer, and what else is in its tree."""

    machine: Any
    answers: tuple[Answer, ...] = ()
    tree: Callable[[Machine], object] = lambda _: None


def ollama(on_gpu: float, size: float = 5.7) -> Answer:
    """What Ollama says of a model, in GiB."""
    model = LoadedModel("qwen3:8b", round(size * 2**30), round(on_gpu * 2**30))
    return Answer("ollama", "ollama.service", "http://127.0.0.1:11434/api/ps", (model,))


READY = Answer("llama-cpp", "process 4711", "http://127.0.0.1:8080/health")


def process(*words: str, more: Callable[[Machine], object] = lambda _: None) -> Any:
    """A tree with a process."""

    def make(machine: Machine) -> None:
        machine.write("/proc/4711/cmdline", "".join(f"{word}\0" for word in words))
        more(machine)

    return make


def unit_with(variable: str) -> Callable[[Machine], object]:
    """A tree with a service of llama-server that sets a variable."""
    text = f"[Service]\nExecStart=/opt/llama/llama-server\nEnvironment={variable}\n"
    return lambda machine: machine.write("/etc/systemd/system/llama.service", text)


SERVER = ("/opt/llama/llama-server", "-m", "/models/a.gguf")
FREE: dict[str, Any] = {"ecc": False}


def runtime(cgroups: str, mode: str = "auto", daemon: bool = True) -> Callable[[Machine], object]:
    def make(machine: Machine) -> None:
        machine.write("/usr/bin/docker", "")
        if daemon:
            text = '{"runtimes": {"nvidia": {"path": "nvidia-container-runtime"}}}'
            machine.write("/etc/docker/daemon.json", text)
        machine.write(
            "/etc/nvidia-container-runtime/config.toml",
            f"[nvidia-container-cli]\n{cgroups}\n[nvidia-container-runtime]\nmode = '{mode}'\n",
        )

    return make


def hanging(function: str) -> dict[str, Any]:
    """Two cards; a call for the second does not come back."""
    return {
        "driver_branch": "580",
        "card": [{"gpu": "p40"}, {"gpu": "p40", "hangs": {function: 90}}],
    }


P40 = "Tesla P40 (6.1) at 0000:01:00.0"
#: By rule: a machine, the texts that it prints, and machines that are nearly like it.
CASES: dict[str, tuple[Any, list[str], list[Any]]] = {
    "S5": (
        hanging("nvmlDeviceGetTemperature"),
        ["Tesla P40 (6.1) at 0000:02:00.0: nvmlDeviceGetTemperature did not come back"],
        [hanging("nvmlDeviceGetHandleByIndex"), "p40x2"],
    ),
    "D12": (
        slow("p40"),
        [f"{P40}: persistence mode is off; the driver took * s to start"],
        [
            slow("p40", persistence=True),
            slow("p40", display_active=True),
            slow("p40", processes=HELD),
            slow("k80"),
        ],
    ),
    "E9": (
        Running("p40x2", (ollama(3.1),)),
        ["qwen3:8b: 3.1 of 5.7 GiB on the GPU"],
        [
            Running("p40x2", (ollama(5.7),)),
            Running("p40x2", (Answer("ollama", "ollama.service", "x"),)),
            Running("p40x2", (READY,)),
        ],
    ),
    "E21": (
        Running("p40x2", tree=runtime("no-cgroups = true")),
        ["no-cgroups = true, and Docker's daemon.json names the runtime nvidia"],
        [
            Running("p40x2", tree=runtime("no-cgroups = false")),
            Running("p40x2", tree=runtime("#no-cgroups = true")),
            Running("p40x2", tree=runtime("no-cgroups = true", mode="cdi")),
            Running("p40x2", tree=runtime("no-cgroups = true", daemon=False)),  # rootless
        ],
    ),
    "E22": (
        Running(one("p40", **FREE), (READY,), process(*SERVER)),
        ["process 4711 is ready; NVML lists it on no GPU"],
        [
            Running(one("p40", processes=HELD, **FREE), (READY,), process(*SERVER)),
            Running(one("p40", **FREE), (READY,), process(*SERVER, "-ngl", "0")),
            Running(one("p40", **FREE), (), process(*SERVER)),  # not ready yet
            *(
                Running(one("p40", **FREE), (READY,), process(*SERVER, more=unit_with(variable)))
                for variable in ("LLAMA_ARG_N_GPU_LAYERS=0", "LLAMA_ARG_DEVICE=none")
            ),
            Running(  # WSL2
                one("p40", **FREE),
                (READY,),
                process(*SERVER, more=lambda m: m.write("/dev/dxg", "")),
            ),
            Running(
                one("p40", **FREE),
                (READY,),
                process(*SERVER, more=lambda m: m.write("/.dockerenv", "")),
            ),
            Running(one("p40", processes=HELD, **FREE), (ollama(5.7),)),
        ],
    ),
    "E23": (
        Running("p40x2", (Answer("vllm", "ai.service", "http://127.0.0.1:8000/metrics", (), 7.0),)),
        ["7 requests were preempted"],
        [Running("p40x2", (Answer("vllm", "ai.service", "x", (), 0.0),)), "p40x2"],
    ),
    "H2": (
        "broken-lost",
        ["Tesla P40 (6.1) at 0000:02:00.0: gpu is lost (nvmlDeviceGetHandleByIndex)"],
        ["p40x2", "broken-unknown", "broken-no-permission"],
    ),
    "H3": (
        "p4",
        [
            "Tesla P4 (6.1) at 0000:01:00.0: 91 C; sw_thermal_slowdown, hw_thermal_slowdown; "
            "455 of 1531 MHz"
        ],
        [changed("p4", throttle=["sw_power_cap", "hw_slowdown"]), changed("p4", throttle=[])],
    ),
    "H4": (
        one("p40", pstate=0, power_w=50.3, **IDLE),
        [f"{P40}: P0 and 50 W at 0 % use, 8000 MiB held"],
        [
            one("p40", pstate=8, power_w=11.0, **IDLE),
            one("p40", pstate=0, power_w=50.3),
            one("p40", pstate=0, power_w=150.3, utilization_gpu=90, **IDLE),
            one("gtx1080ti", pstate=0, power_w=50.3, **IDLE),  # of which nothing was read
            one("v100", pstate=0, power_w=50.3, **IDLE),
        ],
    ),
    "H5": (
        one(
            "v100",
            pstate=0,
            power_w=45.1,
            clocks={"graphics": 1230, "sm": 1230, "memory": 877, "video": 1110},
            **IDLE,
        ),
        ["Tesla V100 PCIe 16GB (7.0) at 0000:01:00.0: 45 W and 1230 MHz at 0 % use"],
        ["v100", one("p40", pstate=0, **IDLE), one("p100", utilization_gpu=5, **IDLE)],
    ),
    "H6": (
        one("p40"),
        [f"{P40}: ECC is on, 23040 of 24576 MiB"],
        [
            one("p40", ecc=False),
            one("p100"),
            one("gtx1080ti"),
            one("p40", errors={"nvmlDeviceGetEccMode": "NOT_SUPPORTED"}),
        ],
    ),
    "H10": (
        "p100x4",
        [
            "Tesla P100 PCIe 16GB (6.0) at 0000:04:00.0: 2 uncorrected memory errors since the "
            "driver was loaded; pages of its memory wait to be retired"
        ],
        ["k80", one("p100", ecc_errors={"corrected_volatile": 3, "uncorrected_aggregate": 1})],
    ),
}


def seen(case: Running | Mapping[str, Any] | str, start: Start, root: Path) -> Facts:
    """The facts of a machine: its tree, and what NVML says of it."""
    running = case if isinstance(case, Running) else Running(case)
    made = start(running.machine).machine
    branch = next(item for item in catalog.branches() if item.branch == made["driver_branch"])
    tree = Machine(root / "tree", version=branch.latest)
    number = 0
    for card in made["card"]:
        for _ in range(catalog.find_gpu(card["gpu"]).dies):
            number += 1
            tree.gpu(card["gpu"], f"0000:{number:02x}:00.0", "nvidia")
    running.tree(tree)
    hangs = any(90 in card.get("hangs", {}).values() for card in made["card"])
    found = Fact(nvml.snapshot(6.0 if hangs else PATIENCE), probe.SOURCE)
    return replace(tree.facts(), nvml=found, apis=running.answers)


def test_every_rule_has_machines() -> None:
    assert set(CASES) == set(live.FACT_RULES)


@pytest.mark.parametrize("rule_id", CASES)
def test_where_a_rule_fires(rule_id: str, start: Start, tmp_path: Path) -> None:
    machine, texts, _ = CASES[rule_id]
    found = {item.rule.id: item for item in diagnose(seen(machine, start, tmp_path)).findings}
    shown = [item.text for item in found[rule_id].evidence]
    if rule_id == "D12":  # how long it took is no fixed number
        before, after = texts[0].split("*")
        assert shown[0].startswith(before) and shown[0].endswith(after)
    else:
        assert shown == texts
    for item in found[rule_id].evidence:
        on_disk = (tmp_path / "tree" / item.source.lstrip("/")).exists()
        assert item.source == "NVML" or item.source.startswith("http://127.0.0.1:") or on_disk
    for line in (found[rule_id].cause, *found[rule_id].fix):
        assert "?" not in line and "{" not in line


@pytest.mark.parametrize(
    ("rule_id", "number"), [(name, n) for name, case in CASES.items() for n in range(len(case[2]))]
)
def test_where_it_nearly_does(rule_id: str, number: int, start: Start, tmp_path: Path) -> None:
    facts = seen(CASES[rule_id][2][number], start, tmp_path)
    assert facts.nvml is not None and facts.nvml.value.devices and not facts.failures
    assert rule_id not in {item.rule.id for item in diagnose(facts).findings}


def test_ollama_that_says_it_is_on_the_gpu(start: Start, tmp_path: Path) -> None:
    facts = seen(Running(one("p40", **FREE), (ollama(5.7),)), start, tmp_path)
    (found,) = diagnose(facts).findings
    assert found.rule.id == "E22"
    assert found.evidence[0].text == (
        "Ollama has a model on the GPU, and NVML lists no process on any GPU"
    )


def test_what_follows_from_a_driver_that_ollama_cannot_use(start: Start, tmp_path: Path) -> None:
    """The cause is in front, what Ollama does because of it below."""
    unit = "[Service]\nExecStart=/usr/bin/ollama serve\nEnvironment=CUDA_VISIBLE_DEVICES=\n"
    facts = seen(
        Running(
            one("p40", **FREE),
            (ollama(0),),
            lambda m: m.write("/etc/systemd/system/ollama.service", unit),
        ),
        start,
        tmp_path,
    )
    (cause,) = diagnose(facts).causes
    assert cause.finding.rule.id == "E17"
    assert [item.rule.id for item in cause.follows] == ["E9"]


def test_a_container_that_lost_its_gpus(start: Start, tmp_path: Path) -> None:
    machine = {**one("p40"), "init_error": "UNKNOWN"}
    container = Running(machine, tree=lambda m: m.write("/.dockerenv", ""))
    (found,) = diagnose(seen(container, start, tmp_path)).findings
    assert (found.rule.id, found.evidence[0].text) == ("E21", "NVML: unknown (nvmlInit)")
    assert diagnose(seen(machine, start, tmp_path / "host")).findings == ()


def test_a_driver_that_starts_in_time(start: Start, tmp_path: Path) -> None:
    facts = seen(CASES["D12"][0], start, tmp_path)
    assert facts.nvml is not None and facts.nvml.value.start_s > 1.9
    for seconds, fires in ((live.SLOW, True), (live.SLOW - 0.1, False)):
        found = replace(facts, nvml=Fact(replace(facts.nvml.value, start_s=seconds), "NVML"))
        assert ("D12" in {item.rule.id for item in diagnose(found).findings}) == fires


def test_a_module_of_another_release(start: Start, tmp_path: Path) -> None:
    facts = seen("broken-version-mismatch", start, tmp_path)
    (cause,) = diagnose(facts).causes
    assert cause.finding.rule.id == "D5"
    (evidence,) = cause.finding.evidence
    assert (evidence.text, evidence.source) == ("NVML: lib rm version mismatch (nvmlInit)", "NVML")


@pytest.mark.parametrize(("name", "mib"), [("m40", 12288), ("m40-24gb", 24576)])
def test_cards_of_one_id_are_told_apart(name: str, mib: int, start: Start, tmp_path: Path) -> None:
    facts = seen(one(name), start, tmp_path)
    assert [card.gpu.name for card in cards(facts)] == [name]
    (found,) = diagnose(facts).findings
    assert f"of {mib} MiB" in found.evidence[0].text
    assert cards(replace(facts, nvml=None))[0].gpu.name == "m40"


def test_how_the_cards_are(start: Start, tmp_path: Path) -> None:
    facts = seen(Running("p40x2", (ollama(5.7),)), start, tmp_path)
    diagnosis = diagnose(facts)
    assert diagnosis.now[-1] == "Ollama: qwen3:8b: 100 % on the GPU"
    assert diagnosis.now[0] == f"{P40}: 71 C, 140 of 140 W, P0, 19456 of 23040 MiB used"
    assert diagnosis.fine[0] == P40 and diagnosis.verdict == "fine"
    assert facts.nvml is not None
    first, second = facts.nvml.value.devices
    warmer = replace(facts.nvml.value, devices=(replace(first, temperature_c=72), second))
    after = diagnose(replace(facts, nvml=Fact(warmer, "NVML")))
    assert after.now != diagnosis.now
    assert changes(diagnosis, after) == ()  # --watch tells no degrees


@pytest.mark.parametrize("gpu", ["10de:2330", "10de:1eb8"])  # an H100, a T4
def test_a_healthy_modern_card_has_no_finding(gpu: str, start: Start, tmp_path: Path) -> None:
    name = catalog.find_gpu(gpu).name
    keys: dict[str, Any] = {"mig": False, "temperature_memory_c": 40, "energy_j": 1.0}
    machine = one(name, power_w=72.0, pstate=0, power_default_limit_w=700.0, **keys, **IDLE)
    assert diagnose(seen(machine, start, tmp_path)).findings == ()


# --------------------------------------------------------------------------------- the probe


@pytest.fixture
def as_if_live(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A sign of a driver, and only the probe that asks it."""
    sign = tmp_path / "nvidiactl"
    sign.touch()
    monkeypatch.setattr(probe, "SIGNS", (str(sign),))
    monkeypatch.setattr(examining, "PROBES", {"nvml": probe.look})


def looked(seconds: float, monkeypatch: pytest.MonkeyPatch) -> Facts:
    monkeypatch.setattr(probe, "SECONDS", seconds)
    return examining.examine(probes={"nvml": probe.look})


@pytest.mark.usefixtures("as_if_live")
def test_a_driver_that_hangs_is_cut(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    start("broken-hang")
    begin = time.monotonic()
    facts = looked(3.0, monkeypatch)
    assert time.monotonic() - begin < 4.5  # the call hangs for 60 s
    (failure,) = facts.failures
    assert failure.probe == "nvml"
    assert failure.what.startswith("GPU 1, Tesla P40: timed out (nvmlDeviceGetTemperature, for ")
    assert facts.nvml is not None and facts.nvml.value.devices[0].temperature_c == 40


@pytest.mark.usefixtures("as_if_live")
@pytest.mark.parametrize(
    ("machine", "texts"),
    [
        ("broken-driver-not-loaded", ["NVML: driver not loaded (nvmlInit)"]),
        ("broken-version-mismatch", []),  # rule D5
        ("broken-lost", []),  # rule H2
        (
            "broken-no-permission",
            ["GPU 1, ?: no permission (nvmlDeviceGetHandleByIndex)"],
        ),
        ("p100x4", []),
    ],
)
def test_what_is_not_seen_is_told(
    machine: str, texts: list[str], start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(machine)
    assert [item.what for item in looked(PATIENCE, monkeypatch).failures] == texts


def test_nothing_is_asked_without_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(limit: float) -> None:
        raise AssertionError("NVML was asked")

    monkeypatch.setattr(nvml, "snapshot", ask)
    monkeypatch.setattr(probe, "SIGNS", (str(tmp_path / "none"),))
    assert probe.look(Place()) is None
    Machine(tmp_path, "p40")
    monkeypatch.setattr(probe, "SIGNS", ("/dev/nvidiactl",))
    assert probe.look(Place(tmp_path)) is None  # a recorded tree


@pytest.mark.usefixtures("as_if_live")
def test_the_command(start: Start, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """All of it, but for the other probes, which see no card here: WSL2 is like that."""
    start("p4")
    assert main(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [found["id"] for found in document["findings"]] == ["H3", "H6"]
    assert {found["evidence"][0]["gpu"] for found in document["findings"]} == {"p4"}
    told = document["facts"]["nvml"]
    assert told["source"] == "NVML" and told["value"]["driver_version"] == GOOD
    (device,) = told["value"]["devices"]
    assert device["temperature_c"] == 91 and device["missing"]["fan_percent"]["error"]
    bundle = tmp_path / "bundle.tar.gz"
    assert main(["doctor", "--bundle", str(bundle)]) == 0
    assert "91 C" in capsys.readouterr().out
    with tarfile.open(bundle) as archive:
        file = archive.extractfile("legacy-cuda-doctor/doctor.json")
        assert file is not None
        text = file.read().decode()
    assert device["uuid"] not in text and "sw_thermal_slowdown" in text


VALUES = st.one_of(st.none(), st.integers(-5, 10**15), st.floats(allow_nan=True))


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            [
                *("power_w", "pstate", "utilization_percent", "memory_total_bytes"),
                *("memory_used_bytes", "temperature_c", "clock_sm_mhz", "clock_sm_max_mhz"),
                *("ecc_uncorrected_volatile", "power_enforced_limit_w"),
            ]
        ),
        VALUES,
    ),
    st.sampled_from([None, "10de:1b38", "10de:17fd", "nonsense"]),
    st.booleans(),
)
def test_any_numbers(values: dict[str, Any], pci_id: str | None, yes: bool) -> None:
    """A driver that says odd things makes no crash."""
    device = Device(
        index=0,
        pci_id=pci_id,
        ecc=yes,
        throttle_reasons=("hw_thermal_slowdown",) if yes else None,
        processes=(nvml.Process(1, "compute", None, None, None),) if yes else (),
        **{name: value for name, value in values.items() if value == value},
    )
    facts = Facts(TODAY, nvml=Fact(Snapshot(0.0, 5.0, devices=(device,), start_s=5.0), "NVML"))
    assert diagnose(facts).verdict in ("fine", "warnings")
