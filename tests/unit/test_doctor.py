"""The doctor: rules on recorded machines and logs, what it reads, what it prints.

The machines are trees like a system's, made in a temporary folder. No test looks at a real GPU.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from machines import GOOD, TODAY, Case, Machine, changed, healthy

from legacy_cuda import catalog
from legacy_cuda.catalog import doctor as data
from legacy_cuda.cli import main
from legacy_cuda.doctor import live, logs, software, system_log
from legacy_cuda.doctor.cards import Evidence
from legacy_cuda.doctor.diagnosis import Diagnosis, diagnose, diagnose_log, group
from legacy_cuda.doctor.examine import examine
from legacy_cuda.doctor.facts import Facts
from legacy_cuda.doctor.place import Place
from legacy_cuda.doctor.probes import kernel, libcuda
from legacy_cuda.doctor.rules import FACT_RULES, finding, fits, windows
from legacy_cuda.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
SCHEMAS = Path(catalog.__file__).parent / "schema"
SAMPLES: dict[str, dict[str, list[str]]] = tomllib.loads(
    (Path(__file__).parent / "doctor_logs.toml").read_text(encoding="utf-8")
)
RULES = {rule.id: rule for rule in data.rules()}
LOG_RULES = [rule for rule in data.rules() if rule.patterns]
STRANGER = "10de:128b"  # a GeForce GT 710, which the catalog does not have


def compat(machine: Machine, version: str, setting: bool = True) -> None:
    machine.library(f"/usr/local/cuda-13.3/compat/libcuda.so.{version}")
    machine.link("/usr/local/cuda", "/usr/local/cuda-13.3")
    if setting:
        machine.write("/etc/ld.so.conf.d/00-compat.conf", "# compat\n/usr/local/cuda/compat\n")


def no_place(machine: Machine) -> None:
    zero = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n"
    lines = "0x00000000f6000000 0x00000000f6ffffff 0x0000000000040200\n"
    machine.write(f"{machine.folder}/resource", lines + zero * 12)


def of_an_h200(machine: Machine) -> None:
    """The addresses of a real one, with the usual flags: BAR0 has 64 bits, so there is no BAR1."""
    none = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n"
    machine.write(
        f"{machine.folder}/resource",
        "0x0000104002000000 0x0000104002ffffff 0x000000000014220c\n"
        f"{none}0x0000100000000000 0x0000103fffffffff 0x000000000014220c\n"
        f"{none}0x0000104000000000 0x0000104001ffffff 0x000000000014220c\n" + none * 8,
    )


def helper(machine: Machine) -> None:
    machine.remove("/dev/nvidia-uvm")
    machine.write("/usr/bin/nvidia-modprobe", "").chmod(0o4755)


def slot(machine: Machine, lanes: str) -> None:
    machine.write(f"{machine.folder}/current_link_width", f"{lanes}\n")
    machine.write(f"{machine.folder.rpartition('/')[0]}/max_link_width", f"{lanes}\n")


def ignored(machine: Machine, branch: str, name: str = "GeForce GT 710") -> None:
    machine.write(
        "/var/log/dmesg",
        f"[ 5.0] NVRM: The NVIDIA {name} GPU installed in this system is\n"
        f"[ 5.0] NVRM:  supported through the NVIDIA {branch}.xx Legacy drivers. Please\n"
        "[ 5.0] NVRM:  visit NVIDIA's site for more\n"
        "[ 5.0] NVRM: The NVIDIA probe routine failed for 1 device(s).\n",
    )


def stranger(machine: Machine, branch: str, driver: str | None = None) -> None:
    machine.gpu(STRANGER, "0000:05:00.0", driver)
    ignored(machine, branch)


CASES: dict[str, tuple[list[Case], list[Case]]] = {
    "D1": (
        [healthy("p40", version="590.48.01"), healthy("m40", version="595.91.07")],
        [healthy("p40", version="570.211.01"), healthy("k80", version="590.48.01")],
    ),
    "D2": (
        [healthy("p40", opened=True), healthy("v100", version="570.211.01", opened=True)],
        [healthy("p40"), healthy("10de:2330", opened=True)],
    ),
    "D3": (
        [healthy("k80", version="535.288.01"), healthy("k40", version=GOOD)],
        [healthy("k80", version="470.256.02"), healthy("p40", version="590.48.01")],
    ),
    "D4": (
        [
            healthy("k80", version=None, linux="7.0.1-arch1-1"),
            changed(
                "p40",
                version=None,
                linux="7.1.0",
                change=lambda m: m.write("/usr/src/nvidia-580.95.05/dkms.conf", ""),
            ),
        ],
        [
            healthy("k80", version=None, linux="6.18.2"),
            healthy("p40", version=None, linux="7.1.0"),
            changed(
                "p40",
                version=None,
                linux="7.1.0",
                change=lambda m: m.write(f"/usr/src/nvidia-{GOOD}/dkms.conf", ""),
            ),
            healthy("k80", version="470.256.02", linux="7.0.1"),  # loaded: so it was compiled
        ],
    ),
    "D5": (
        [changed("p40", change=lambda m: m.driver("580.95.05"))],
        [
            healthy("p40"),
            changed("p40", change=lambda m: m.library("/usr/lib64/libcuda.so.535.1.1")),
        ],
    ),
    "D6": (
        [
            changed("p40", version=None, change=lambda m: m.bind(m.folder, "nouveau")),
            changed("v100", version=None, change=lambda m: m.bind(m.folder, "NovaCore")),
        ],
        [
            healthy("p40", version=None),
            changed("p40", version=None, change=lambda m: m.bind(m.folder, "vfio-pci")),
        ],
    ),
    "D7": (
        [healthy("p40", version="470.256.02"), healthy("k80", version="418.226.00")],
        [healthy("p40", version="535.288.01"), healthy("k80", version="470.256.02")],
    ),
    "D10": (
        [changed("gtx1080ti", change=lambda m: compat(m, "610.57.04"))],
        [
            changed("gtx1080ti", change=lambda m: compat(m, GOOD)),
            changed("gtx1080ti", change=lambda m: compat(m, "610.57.04", setting=False)),
            changed("p40", change=lambda m: compat(m, "610.57.04")),
        ],
    ),
    "D11": (
        [healthy("p40", version="535.288.01"), healthy("k80", version="470.256.02")],
        [healthy("p40"), healthy("p40", version="550.163.01")],  # of 550 no day is known
    ),
    "D13": (
        [healthy("p40", version=None), healthy("p40", version=None, system="nixos")],
        [
            healthy("p40"),
            healthy(version=None),
            healthy("10de:2330", version=None),
            changed("p40", version=None, change=lambda m: m.bind(m.folder, "vfio-pci")),
        ],
    ),
    "D15": (
        [changed("p40", change=lambda m: m.remove("/dev/nvidia-uvm"))],
        [healthy("p40"), changed("p40", change=helper)],
    ),
    "D16": (
        [changed("p40", change=lambda m: m.remove("/usr/lib/x86_64-linux-gnu/libcuda.so.1"))],
        [healthy("p40"), healthy(version=None)],
    ),
    "D18": (
        [
            changed("p40", change=lambda m: stranger(m, "470")),
            changed("rtx3090", version="595.71.05", change=lambda m: stranger(m, "580")),
        ],
        [
            healthy("p40"),
            changed("p40", version="590.48.01", change=lambda m: stranger(m, "580")),
            changed("p40", change=lambda m: ignored(m, "470")),  # no other card: an old line
        ],
    ),
    "E10": (
        [changed("p40", change=lambda m: m.write("/proc/cpuinfo", "flags : sse2 ssse3\n"))],
        [
            healthy("p40"),
            changed("p40", change=lambda m: m.write("/proc/cpuinfo", "Features : asimd\n")),
        ],
    ),
    "E15": (
        [healthy("k80", "10de:2684"), healthy("p40", "10de:2b85")],
        [healthy("k80", "p40", version="470.256.02"), healthy("v100", "10de:2330")],
    ),
    "H1": (
        [changed("p40", change=no_place)],
        [healthy("p40"), changed("10de:2335", opened=True, change=of_an_h200)],
    ),
    "H7": ([healthy("k80", version="470.256.02")], [healthy("p40")]),
    "H8": (
        [
            changed("p40", change=lambda m: m.write(f"{m.folder}/current_link_width", "4\n")),
            changed("p40", change=lambda m: m.write(f"{m.folder}/current_link_width", "1\n")),
        ],
        [
            changed("p40", change=lambda m: slot(m, "8")),
            changed("p40", change=lambda m: m.write(f"{m.folder}/current_link_width", "63\n")),
            changed(
                "p40",
                change=lambda m: m.write(f"{m.folder}/current_link_speed", "2.5 GT/s PCIe\n"),
            ),
        ],
    ),
}


def each(firing: bool) -> Iterator[Any]:
    for rule_id, (fires, misses) in CASES.items():
        for number, case in enumerate(fires if firing else misses):
            yield pytest.param(rule_id, case, id=f"{rule_id}-{number}")


def test_every_fact_rule_has_machines() -> None:
    assert set(CASES) == set(FACT_RULES) - set(software.FACT_RULES) - set(live.FACT_RULES)


@pytest.mark.parametrize(("rule_id", "case"), list(each(True)))
def test_a_machine_in_which_a_rule_fires(rule_id: str, case: Case, tmp_path: Path) -> None:
    machine = case(tmp_path)
    found = {item.rule.id: item for item in diagnose(machine.facts()).findings}
    assert rule_id in found
    for evidence in found[rule_id].evidence:
        named = tmp_path / evidence.source.lstrip("/")
        assert evidence.source == "legacy-cuda resolve" or os.path.lexists(named), evidence
    assert "{" not in found[rule_id].cause


@pytest.mark.parametrize(("rule_id", "case"), list(each(False)))
def test_a_machine_in_which_it_does_not(rule_id: str, case: Case, tmp_path: Path) -> None:
    assert rule_id not in case(tmp_path).found()


@pytest.mark.parametrize(
    "gpus", [("p40",), ("p40", "p40"), ("v100",), ("p4000", "gtx1060-6gb"), ("10de:2330",), ()]
)
def test_a_healthy_machine_has_no_finding(gpus: tuple[str, ...], tmp_path: Path) -> None:
    machine = Machine(tmp_path, *gpus)
    diagnosis = diagnose(machine.facts())
    assert diagnosis.findings == () and diagnosis.failures == ()
    assert diagnosis.verdict == "fine" and diagnosis.fine


def test_healthy_on_nixos_and_in_a_container(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "p40", system="nixos")
    for name in ("libcuda.so.1", f"libcuda.so.{GOOD}"):
        machine.remove(f"/usr/lib/x86_64-linux-gnu/{name}")
    store = "/nix/store/abc-nvidia-x11/lib"
    machine.library(f"{store}/libcuda.so.{GOOD}")
    machine.link("/run/opengl-driver", "/nix/store/abc-nvidia-x11")
    machine.write("/run/.containerenv", "")
    facts = machine.facts()
    assert diagnose(facts).findings == ()
    assert facts.system is not None and facts.system.kind.value == "nixos"
    assert facts.system.container is not None
    assert facts.libraries is not None
    assert [item.version for item in facts.libraries.found] == [GOOD]


def test_the_kernel_log_counts_from_the_last_start(tmp_path: Path) -> None:
    bad = "[ 5.0] NVRM: GPU 0000:3b:00.0: RmInitAdapter failed! (0x24:0x72:1603)\n"
    start = "[ 0.0] Linux version 6.12.48 (x@y)\n"
    machine = Machine(tmp_path, "p40")
    machine.remove("/var/log/dmesg")
    machine.write("/var/log/kern.log", start + bad + start + "[ 1.0] nvidia: loading\n")
    assert machine.found() == set()
    machine.write("/var/log/kern.log", start + start + bad * 9000)
    (cause,) = diagnose(machine.facts()).causes
    assert cause.finding.rule.id == "S3" and cause.finding.left_out > 0
    assert cause.finding.evidence[0].source == "/var/log/kern.log"


def test_the_kernel_log_shows_only_what_kernels_print(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "p40")
    machine.write("/var/log/dmesg", "nvidia: no CUDA-capable device is detected\n")
    assert machine.found() == set()


# ------------------------------------------------------------------------------------- logs


def scanned(text: str | bytes) -> logs.Scan:
    raw = text.encode() if isinstance(text, str) else text
    return logs.scan(logs.blocks(io.BytesIO(raw)), LOG_RULES)


def ids(text: str | bytes) -> list[str]:
    return [hit.rule.id for hit in scanned(text).hits]


def test_every_log_rule_has_lines() -> None:
    assert list(SAMPLES) == [rule.id for rule in LOG_RULES]


@pytest.mark.parametrize("rule", LOG_RULES, ids=lambda rule: rule.id)
def test_lines_of_a_rule(rule: data.Rule) -> None:
    fires, misses = SAMPLES[rule.id]["fires"], SAMPLES[rule.id]["misses"]
    for line in fires:
        hits = scanned(f"before\n{line}\nafter\n").hits
        assert [hit.rule.id for hit in hits] == [rule.id], line
        assert hits[0].lines == (logs.Line(2, logs.clean(line)),)
    for pattern in rule.patterns:
        assert any(pattern.matches(line) for line in fires), pattern
    assert misses
    for line in misses:  # a line may only show the rule whose sample it is
        assert rule.id not in ids(line), line
        assert all(line.strip() in map(str.strip, SAMPLES[one]["fires"]) for one in ids(line)), line


THREADS = tomllib.loads((Path(__file__).parent / "doctor_threads.toml").read_text(encoding="utf-8"))


def test_there_are_enough_threads() -> None:
    threads = [item["thread"] for item in THREADS["log"]]
    assert len(threads) >= 100 and len(THREADS["healthy"]) >= 20
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", thread) for thread in threads)
    assert sum(item.get("made_up", False) for item in THREADS["log"]) < 5
    rules = {item["cause"] for item in THREADS["log"]}
    assert len(rules) >= 30 and rules <= set(RULES)


@pytest.mark.parametrize(
    "item", THREADS["log"], ids=lambda item: f"{item['thread']}-{item['cause']}"
)
def test_the_cause_of_a_posted_log(item: dict[str, Any]) -> None:
    diagnosis = diagnose_log(Facts(TODAY), scanned(item["text"]), "log")
    assert [cause.finding.rule.id for cause in diagnosis.causes] == [item["cause"]]
    assert {one.rule.id for one in diagnosis.causes[0].follows} == set(item.get("then", []))


@pytest.mark.parametrize("item", THREADS["healthy"], ids=lambda item: item["what"][:40])
def test_a_healthy_log(item: dict[str, str]) -> None:
    assert ids(item["text"]) == []


def test_numbers_of_lines_and_counts() -> None:
    scan = scanned("a\n" * 10 + "RmInitAdapter failed!\n" * 20 + "b")
    (hit,) = scan.hits
    assert scan.lines == 31 and hit.count == 20
    assert [line.number for line in hit.lines] == [11, 12, 13, 14, 15]
    assert ids("") == [] and scanned("").lines == 0


TEXT = "first\r\nError: no kernel image is available for execution on the device\r\n"


@pytest.mark.parametrize(
    "encoding",
    ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252"],
)
def test_encodings(encoding: str) -> None:
    (hit,) = scanned(("Größe\r\n" + TEXT).encode(encoding)).hits
    assert hit.rule.id == "P1" and hit.lines[0].number == 3


def test_colours_and_progress_bars() -> None:
    text = (
        "\r 10%\r 20%\r\x1b[31mCUDA error: \x1b[1mdevice kernel\x1b[0m image is invalid\x1b[0m\r\n"
    )
    (hit,) = scanned(text).hits
    assert hit.lines[0].text == "CUDA error: device kernel image is invalid"


def test_a_compressed_log() -> None:
    with pytest.raises(UserError, match="compressed") as caught:
        scanned(gzip.compress(TEXT.encode()))
    assert "zcat" in caught.value.next_step


class Endless(io.RawIOBase):
    """A log of so many bytes that is never whole in memory."""

    def __init__(self, piece: bytes, size: int) -> None:
        self.piece, self.left = piece, size

    def read(self, size: int = -1) -> bytes:
        size = min(size, self.left)
        self.left -= size
        return (self.piece * (size // len(self.piece) + 1))[:size]


@pytest.mark.parametrize(
    "piece", [b"x" * 99 + b"\n", b"y" * 100, b"error requires .target sm_70 or higher\n", b"\r"]
)
def test_a_large_log_needs_little(piece: bytes) -> None:
    import tracemalloc

    size = 4 << 20
    tracemalloc.start()
    begin = time.process_time()
    stream = cast(BinaryIO, Endless(piece, size))  # of which it has `read`, all that is called
    scan = logs.scan(logs.blocks(stream), LOG_RULES)
    seconds = time.process_time() - begin
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert scan.hits == () and most < 24 << 20
    assert seconds < 60


def test_a_text_on_the_border_of_blocks() -> None:
    needle = b"CUDNN_STATUS_ARCH_MISMATCH"
    for before in range(logs.BLOCK - 30, logs.BLOCK + 2, 5):
        assert ids(b"z" * before + needle + b"z" * 100) == ["T4"]
        assert ids(b"z" * 70 + b"\n" + b"z" * before + needle) == ["T4"]


# ------------------------------------------------------------------------------- diagnosis


def test_causes_come_first() -> None:
    text = (
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n"
        "NVRM: No NVIDIA GPU found.\n"
        "quantized kv cache requested but flash attention disabled\n"
        "CPU does not have AVX or AVX2, disabling GPU support.\n"
        "NVRM:  supported through the NVIDIA 580.xx Legacy drivers. Please\n"
    )
    diagnosis = diagnose_log(Facts(TODAY), scanned(text), "x.log")
    assert [cause.finding.rule.id for cause in diagnosis.causes] == ["E11", "D1", "E10"]
    assert [item.rule.id for item in diagnosis.causes[1].follows] == ["S2", "S1"]
    assert diagnosis.verdict == "errors"


def test_machine_and_kernel_log_make_one_finding(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "p40", opened=True)
    machine.write(
        "/var/log/dmesg",
        "NVRM: The NVIDIA GPU 0000:3b:00.0 (PCI ID: 10de:1b38)\n"
        "NVRM: installed in this system is not supported by open\n"
        "NVRM: nvidia.ko because it does not include the required GPU\n"
        "NVRM: GPU 0000:3b:00.0: RmInitAdapter failed! (0x24:0x72:1603)\n",
    )
    (cause,) = diagnose(machine.facts()).causes
    assert cause.finding.rule.id == "D2" and len(cause.finding.evidence) == 3
    assert [item.rule.id for item in cause.follows] == ["S3"]


def test_mixed_cards_are_the_cause(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "p40", "10de:2b85", opened=True)
    (cause,) = diagnose(machine.facts()).causes
    assert cause.finding.rule.id == "E15"
    assert [item.rule.id for item in cause.follows] == ["D2"]


def test_no_driver_because_it_does_not_compile(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "k80", version=None, linux="7.2.0")
    causes = {cause.finding.rule.id: cause for cause in diagnose(machine.facts()).causes}
    assert set(causes) >= {"D4", "D13"}  # the fix of D13 is not hidden


def test_fixes_are_for_the_system_and_the_card(tmp_path: Path) -> None:
    def fix(folder: str, gpu: str, system: str, container: bool = False) -> str:
        machine = Machine(tmp_path / folder, gpu, version="595.91.07", system=system)
        if container:
            machine.write("/.dockerenv", "")
        return "\n".join(diagnose(machine.facts()).causes[0].finding.fix)

    assert "nvidiaPackages.legacy_580;" in fix("a", "p40", "nixos")
    assert "nvidiaPackages.legacy_470;" in fix("b", "k80", "nixos")
    debian = fix("c", "p40", "debian")
    assert "^cuda-drivers" in debian and debian.index("$ sudo apt-get purge") < debian.index(
        "$ sudo apt-get install nvidia-driver &&"
    )  # apt takes no older driver while the newer one is there
    assert "nvidia-driver-580 " in fix("d", "v100", "ubuntu")
    assert "nvidia-tesla-470-driver" in fix("e", "k80", "debian")
    assert "on the host" in fix("f", "p40", "nixos", container=True)
    assert GOOD in fix("g", "p40", "arch")


def test_merging_keeps_every_evidence_once() -> None:
    facts = Facts(TODAY)
    one = finding(facts, RULES["P1"], [Evidence("a", "x"), Evidence("b", "x")], 2)
    two = finding(facts, RULES["P1"], [Evidence("b", "x"), Evidence("c", "x")], 3)
    (cause,) = group([one, two])
    assert [item.text for item in cause.finding.evidence] == ["a", "b", "c"]
    assert cause.finding.left_out == 5


# ----------------------------------------------------------------------------- the data


def test_the_file_keeps_to_its_schema() -> None:
    schema = json.loads((SCHEMAS / "doctor.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    text = (catalog.DATA / "doctor.toml").read_text(encoding="utf-8")
    Draft202012Validator(schema).validate(tomllib.loads(text))


def test_rules_are_whole() -> None:
    assert len(RULES) == len(data.rules())
    for rule in data.rules():
        assert rule.patterns or rule.id in FACT_RULES, rule.id
        assert (rule.seen_in == "machine") == (not rule.patterns), rule.id
        assert set(rule.follows) <= set(RULES) - {rule.id}, rule.id
        assert catalog.find_gpu(rule.card).legacy, rule.id
        filled = finding(Facts(TODAY), rule, ())
        for text in (filled.cause, *filled.fix):
            assert "?" not in text.replace("?$", ""), (rule.id, text)


def test_what_follows_leads_in_no_circle() -> None:
    def above(rule_id: str, seen: tuple[str, ...]) -> None:
        assert rule_id not in seen, seen
        for item in RULES[rule_id].follows:
            above(item, (*seen, rule_id))

    for rule_id in RULES:
        above(rule_id, ())


def test_no_text_hides_in_another_rule() -> None:
    """A line of one rule shows no other: each sample fires alone, see test_lines_of_a_rule. Texts
    that several rules share are told apart by their regex."""
    texts: dict[str, list[data.Pattern]] = {}
    for rule in LOG_RULES:
        for pattern in rule.patterns:
            texts.setdefault(pattern.text, []).append(pattern)
    assert all(item.regex for shared in texts.values() if len(shared) > 1 for item in shared)


def test_find_rule() -> None:
    assert data.find_rule(" d2 ").id == "D2"
    with pytest.raises(catalog.CatalogError) as caught:
        data.find_rule("D99")
    assert "D1" in caught.value.near


# --------------------------------------------------------------------- probes that fail


def test_a_probe_that_fails_or_hangs_is_told(tmp_path: Path) -> None:
    def fail(place: Place) -> None:
        raise LookupError("it is lost")

    def hang(place: Place) -> None:
        time.sleep(30)

    begin = time.monotonic()
    facts = examine(tmp_path, TODAY, {"pci": fail, "kernel": hang}, seconds=0.2)
    assert time.monotonic() - begin < 2
    assert [(item.probe, item.what) for item in facts.failures] == [
        ("kernel", "took longer than 0.2 s"),
        ("pci", "LookupError: it is lost"),
    ]
    assert facts.pci is None and diagnose(facts).findings == ()


def test_what_several_probes_want_is_found_out_once(tmp_path: Path) -> None:
    """Units are read once for four probes; who asked first tells what could not be read."""
    found: list[Place] = []

    def find(place: Place) -> int:
        found.append(place)
        place.problems.append("/x: no")
        time.sleep(0.05)
        return len(found)

    def look(place: Place) -> int:
        return place.once("units", find)

    facts = examine(tmp_path, TODAY, {"pci": look, "kernel": look, "cpu": look}, seconds=20)
    assert (facts.pci, facts.kernel, facts.cpu) == (1, 1, 1)
    assert len(found) == 1 and len(facts.failures) == 1
    assert Place(tmp_path).once("units", find) == 2  # with a memory of its own


@pytest.mark.parametrize("name", ["pci", "driver", "nodes", "libraries", "kernel", "cpu", "system"])
def test_without_one_probe_nothing_is_made_up(name: str, tmp_path: Path) -> None:
    from legacy_cuda.doctor.examine import PROBES

    Machine(tmp_path, "p40")
    probes = {key: probe for key, probe in PROBES.items() if key != name}
    assert diagnose(examine(tmp_path, TODAY, probes, seconds=20)).findings == ()


DENIED = ("sys/bus/pci/devices", "sys/module", "dev", "usr/lib/x86_64-linux-gnu", "proc", "etc")


@pytest.mark.parametrize("folder", DENIED)
def test_without_permission(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may not be read is told, and nothing is concluded from it. Root may read everything, so
    the refusals are made here."""
    denied = str(tmp_path / folder)

    def refusing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            if str(path).startswith(denied):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *arguments, **options)

        return call

    machine = Machine(tmp_path, "p40")
    for module, name in ((os, "scandir"), (os, "open"), (Path, "stat")):
        monkeypatch.setattr(module, name, refusing(getattr(module, name)))
    facts = machine.facts()
    monkeypatch.undo()
    diagnosis = diagnose(facts)
    assert diagnosis.findings == ()
    assert any("Permission denied" in item.what for item in facts.failures)
    assert not any("no NVIDIA GPU" in text for text in diagnosis.fine)


def test_odd_files_in_a_tree(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "p40")
    machine.remove("/etc/os-release")
    os.mkfifo(tmp_path / "etc/os-release")
    machine.link("/proc/cpuinfo", "cpuinfo")
    machine.remove("/proc/sys/kernel/osrelease")
    (tmp_path / "proc/sys/kernel/osrelease").mkdir()
    diagnosis = diagnose(machine.facts())
    assert diagnosis.findings == ()


def test_links_stay_in_the_tree(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("ID=nixos\n")
    root = tmp_path / "root"
    machine = Machine(root, "p40")
    machine.link("/etc/os-release", "../../../../../../outside")
    place = Place(root)
    assert place.real("/etc/os-release") == "/outside"
    assert place.text("/etc/os-release") is None
    machine.link("/etc/os-release", str(outside))
    assert place.text("/etc/os-release") is None


def test_compat_by_the_environment(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "gtx1080ti")
    compat(machine, "610.57.04", setting=False)
    place = Place(tmp_path)
    seen = libcuda.look(place, {"LD_LIBRARY_PATH": "relative::/usr/local/cuda/compat/"})
    assert seen.compat_first is not None and seen.compat_first.source == "LD_LIBRARY_PATH"
    assert {(item.version, item.compat) for item in seen.found} == {
        (GOOD, False),
        ("610.57.04", True),
    }


def test_a_recorded_tree_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*arguments: object, **options: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", start)
    machine = Machine(tmp_path, "p40")
    facts = machine.facts()
    assert facts.failures == () and facts.kernel is not None


def test_only_dmesg_and_journalctl_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []

    def run(command: list[str], **options: Any) -> Any:
        started.append(command[0])
        assert options["timeout"] <= system_log.SECONDS
        raise subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(os, "access", lambda *_: True)
    assert system_log.read() is None
    assert started == ["/usr/bin/dmesg", "/usr/bin/journalctl"]


# ------------------------------------------------------------------------------- garbage

QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FILES = (
    "/proc/driver/nvidia/version",
    "/sys/module/nvidia/version",
    "/proc/sys/kernel/osrelease",
    "/proc/cpuinfo",
    "/etc/os-release",
    "/etc/ld.so.conf.d/x.conf",
    "/var/log/dmesg",
    *(
        f"/sys/bus/pci/devices/0000:3b:00.0/{name}"
        for name in ("device", "class", "resource", "current_link_width", "max_link_width")
    ),
)
WORDS = st.sampled_from(
    [
        *(b"NVRM version:", b" 580.173.02 ", b"0x10de", b"0xffffffffffffffffff", b"ID=", b"="),
        *(b"flags:", b"\n", b"\0", b"\xff\xfe", b"999999999999.99999999999999999", b"NVRM: "),
        *(b"\xe2\x82", "²".encode(), b"-1", b"7.0", b"580.", "٣.٤".encode()),
    ]
)
GARBAGE = st.one_of(st.binary(max_size=300), st.lists(WORDS, max_size=12).map(b"".join))


@QUICK
@given(st.dictionaries(st.sampled_from(FILES), GARBAGE, max_size=4))
def test_garbage_in_files(
    tmp_path_factory: pytest.TempPathFactory, contents: dict[str, bytes]
) -> None:
    root = tmp_path_factory.mktemp("m")
    machine = Machine(root, "p40")
    for path, content in contents.items():
        file = machine.write(path, "")
        file.write_bytes(content)
    facts = machine.facts()
    diagnosis = diagnose(facts)
    assert isinstance(diagnosis, Diagnosis)
    assert facts.failures == ()


@QUICK
@given(st.binary(max_size=3000))
def test_garbage_in_logs(content: bytes) -> None:
    try:
        scan = scanned(content)
    except UserError:
        return
    assert scan.lines >= 0


@QUICK
@given(
    st.lists(
        st.one_of(
            st.sampled_from([line for item in SAMPLES.values() for line in item["fires"]]),
            st.text(max_size=80),
        ),
        max_size=30,
    )
)
def test_any_mixture_has_one_finding_a_rule(lines: list[str]) -> None:
    scan = scanned("\n".join(lines))
    diagnosis = diagnose_log(Facts(TODAY), scan, "log")
    found = [item.rule.id for item in diagnosis.findings]
    assert len(found) == len(set(found)) == len(scan.hits)
    for cause in diagnosis.causes:
        assert not set(cause.finding.rule.follows) & set(found)


def test_about_gpus_is_bounded() -> None:
    lines = kernel.about_gpus(f"NVRM: {number} {'x' * 5000}" for number in range(20_000))
    assert len(lines) == 5000 and lines[-1].startswith("NVRM: 19999") and len(lines[0]) <= 1000
    assert all(line.partition(" ")[0] == "NVRM:" for line in lines)


# ----------------------------------------------------------------------- the command line


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    code = main(["doctor", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def validate(document: Any) -> None:
    schema = json.loads((SCHEMAS / "doctor-report.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(document)


def test_json_of_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Machine(tmp_path / "good", "p40")
    code, document = run_json(capsys, "--root", str(tmp_path / "good"))
    assert code == 0 and document["verdict"] == "fine"
    validate(document)
    Machine(tmp_path / "bad", "k80", "v100", version="590.48.01", opened=True)
    code, document = run_json(capsys, "--root", str(tmp_path / "bad"))
    assert code == 1 and document["verdict"] == "errors"
    validate(document)
    assert document["findings"][0]["because_of"] is None
    (tmp_path / "empty").mkdir()
    code, document = run_json(capsys, "--root", str(tmp_path / "empty"))
    assert code == 0 and document["findings"] == []
    validate(document)


def test_a_warning_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Machine(tmp_path, "k80", version="470.256.02")
    assert main(["doctor", "--root", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "warning D11" in text and "info H7" in text and "1 warning" in text


def test_the_page_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = Machine(tmp_path, "p40", version="595.91.07", system="nixos")
    machine.write("/var/log/dmesg", "NVRM: No NVIDIA GPU found.\x1b[2J\n")
    assert main(["doctor", "--root", str(tmp_path)]) == 1
    text = capsys.readouterr().out
    assert "error D1: this driver branch no longer serves the GPU" in text
    assert "nvidiaPackages.legacy_580;" in text and "/proc/driver/nvidia/version" in text
    assert text.index("error D1") < text.index("then   error S1")
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_log_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "a.log"
    log.write_bytes(TEXT.encode("utf-16"))
    code, document = run_json(capsys, "--log", str(log), "--gpu", "m40")
    assert code == 1 and document["log"] == {"lines": 2}
    validate(document)
    (found,) = document["findings"]
    assert found["id"] == "P1" and found["example"] is None
    assert "$ legacy-cuda up m40" in found["fix"]
    assert found["evidence"][0]["source"] == f"{log}, line 2"
    log.write_text("all is well\n")
    assert main(["doctor", "--log", str(log)]) == 0
    assert "nothing known in 1 line;" in capsys.readouterr().out


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = tmp_path / "a.gz"
    packed.write_bytes(gzip.compress(b"x"))
    for arguments in (
        ["--log", str(tmp_path / "none")],
        ["--log", str(tmp_path)],
        ["--log", str(packed)],
        ["--root", str(tmp_path / "none")],
        ["--log", str(packed), "--gpu", "p41"],
        ["explain", "D99"],
        ["cure"],
    ):
        assert main(["doctor", *arguments]) == 2, arguments
        captured = capsys.readouterr()
        assert captured.err.startswith("error:") and captured.out == ""


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    for rule in data.rules():
        assert main(["doctor", "explain", rule.id.lower()]) == 0
        text = capsys.readouterr().out
        assert rule.title in text and " ".join(rule.source.split()[:2]) in " ".join(text.split())
    assert main(["doctor", "explain"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(RULES) + 1
    code = main(["doctor", "explain", "D1", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert code == 0 and document["rules"][0]["id"] == "D1"


def test_this_machine_whatever_it_is(tmp_path: Path) -> None:
    """As a program, in a bare environment: no traceback, and in time."""
    variables = tiny.clean_variables(tmp_path)
    begin = time.monotonic()
    done = subprocess.run(
        [*tiny.command(), "doctor", "--json"],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    seconds = time.monotonic() - begin
    assert done.returncode in (0, 1) and done.stderr == ""
    validate(json.loads(done.stdout))
    assert seconds < 10  # alone 0.3 s; the machine may be busy


def test_standard_input(tmp_path: Path) -> None:
    done = subprocess.run(
        [*tiny.command(), "doctor", "--log", "-"],
        env=tiny.clean_variables(tmp_path),
        input="GPU has fallen off the bus",
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 1
    assert "error H2" in done.stdout and "standard input, line 1" in done.stdout


def test_the_page_of_rules_is_current() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "update_doctor.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# ------------------------------------------------------------------ no advice that does harm


def test_the_power_plugs_of_the_catalog() -> None:
    """The two plugs with 8 pins are wired the other way round: a wrong row may destroy a card."""
    for gpu in catalog.gpus():
        if gpu.power_plug == "eps":
            assert gpu.product.startswith("Tesla") and (gpu.tdp_w or 0) > 75, gpu.name
            assert "SXM" not in gpu.product and gpu.capability.major in (3, 5, 6, 7), gpu.name
        if gpu.power_plug == "none":
            assert (gpu.tdp_w or 0) <= 75 or "SXM2" in gpu.product, gpu.name
        if gpu.product.startswith(("GeForce", "TITAN", "Quadro")):
            assert gpu.power_plug != "eps" and gpu.data_center is False, gpu.name
        if gpu.product.startswith("Tesla"):
            assert gpu.data_center is True, gpu.name
        if not gpu.legacy:
            assert gpu.power_plug is None, gpu.name
    plugs = {name: catalog.find_gpu(name).power_plug for name in ("k40", "k80", "p4", "gtx1050ti")}
    assert plugs == {"k40": "pcie", "k80": "eps", "p4": "none", "gtx1050ti": None}
    assert catalog.find_gpu("h100").data_center and catalog.find_gpu("a6000").data_center is None


def fixes(machine: Machine) -> dict[str, str]:
    return {
        item.rule.id: "\n".join((item.cause, *item.fix))
        for item in diagnose(machine.facts()).findings
    }


def of_log(text: str, machine: Machine | None = None, *named: str) -> dict[str, Any]:
    facts = machine.facts() if machine else Facts(TODAY)
    facts = replace(facts, named=tuple(catalog.find_gpu(name) for name in named))
    diagnosis = diagnose_log(facts, scanned(text), "log")
    return {item.rule.id: item for item in diagnosis.findings}


OFF_BUS = "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus."


@pytest.mark.parametrize("system", ["debian", "ubuntu", "nixos", "arch", "container"])
def test_every_fix_for_every_card(system: str, tmp_path: Path) -> None:
    """Nothing is left open, nothing does harm, and a card is told of no plug but its own."""
    machine = Machine(tmp_path, system=system)
    if system == "container":
        machine.write("/.dockerenv", "")
    facts = machine.facts()
    for gpu in catalog.gpus():
        for rule in data.rules():
            one = finding(replace(facts, named=(gpu,)), rule, ())
            text = "\n".join((one.cause, *one.fix))
            where = (rule.id, gpu.name, text)
            assert one.example is None or not fits(gpu, rule.id, {}), where
            assert "?" not in text.replace("?$", ""), where
            assert not re.search(r"(?<![\w=])\{[a-z_]+\}", text), where
            assert not re.search(r"(^|\s)-(pl|pm)\b|power-limit", text), where
            assert rule.id == "D12" or "persistence" not in text, where
            assert gpu.power_plug == "eps" or "an EPS (CPU) plug" not in text, where
            assert gpu.power_plug == "pcie" or "PCIe plugs, not" not in text, where
            kepler = gpu.facts.architecture == "Kepler"
            assert not kepler or not re.search(r"cuda_v12|build triton|cudaArches", text), where


def test_no_fix_sets_power_limits_or_persistence() -> None:
    """A power limit halted a host with a K80. D12 does not fire where there is a Kepler card."""
    for rule in data.rules():
        for line in (rule.cause, *sum(rule.fix.values(), ())):
            words = line.lower().replace("=", " ").split()
            assert not {"-pl", "--power-limit", "-pm", "--persistence-mode"} & set(words), rule.id
            assert rule.id == "D12" or "persistence" not in line, rule.id


@pytest.mark.parametrize(
    ("gpu", "says"),
    [
        *((name, "EPS (CPU) plug with 8 pins, not a PCIe") for name in ("k80", "m60", "p40")),
        *((name, "PCIe plugs, not EPS") for name in ("k40", "gtx1080ti", "p6000", "titan-v")),
        *((name, "no plug, its slot feeds it") for name in ("p4", "v100-sxm2", "p2000")),
        *((name, "the plug that its maker names") for name in ("gtx1050ti", "rtx3090")),
        (STRANGER, "the plug that its maker names"),
    ],
)
def test_the_power_plug_is_that_of_the_card(gpu: str, says: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path, gpu, version=GOOD if gpu != "k80" else "470.256.02")
    machine.write("/var/log/dmesg", OFF_BUS + "\n")
    text = fixes(machine)["H2"]
    assert says in text and "may destroy the card" in text
    kinds = ("EPS (CPU) plug with", "PCIe plugs, not", "no plug,", "its maker names")
    assert sum(kind in text for kind in kinds) == 1


def test_the_power_plugs_of_several_cards_are_told_apart(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "p40", "gtx1060-6gb", STRANGER)
    machine.write("/var/log/dmesg", OFF_BUS + "\n")
    text = fixes(machine)["H2"]
    assert "Tesla P40: an EPS" in text and "GeForce GTX 1060 6GB: PCIe plugs" in text
    assert f"GPU {STRANGER}: the plug that its maker names" in text
    found = of_log(OFF_BUS)["H2"]
    assert "the plug that its maker names" in "".join(found.fix) and found.example is None
    assert "PCIe plugs" in "".join(of_log(OFF_BUS, machine, "gtx970")["H2"].fix)


def test_explain_guesses_no_plug(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "explain", "H2"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "the plug that its maker names" in text and "not a PCIe one" not in text


# ------------------------------------------------------- no finding is blamed on another card


@pytest.mark.parametrize(
    ("gpu", "version", "branch"), [("p40", GOOD, "470"), ("rtx3090", "595.71.05", "580")]
)
def test_an_unknown_card_is_no_fault_of_another(
    gpu: str, version: str, branch: str, tmp_path: Path
) -> None:
    machine = Machine(tmp_path, gpu, version=version)
    stranger(machine, branch)
    diagnosis = diagnose(machine.facts())
    (found,) = diagnosis.findings
    assert found.rule.id == "D18" and diagnosis.verdict == "warnings"
    assert "GT 710" in found.evidence[0].text
    assert catalog.find_gpu(gpu).product not in "".join((found.cause, *found.fix))
    assert any(STRANGER in text for text in diagnosis.not_judged)


def test_a_dropped_card_without_a_module_is_told_by_the_log(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "p40", version=None)
    ignored(machine, "580", "Tesla P40")
    assert "580 is the last driver branch for Tesla P40" in fixes(machine)["D1"]
    ignored(machine, "470")
    assert not {"D1", "D3"} & machine.found()


def test_each_finding_speaks_of_the_card_that_shows_it(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "k80", "p40", version="595.91.07")
    text = fixes(machine)
    assert "last driver branch for Tesla P40" in text["D1"]
    assert "last driver branch for Tesla K80" in text["D3"]
    log = "NVRM:  supported through the NVIDIA 580.xx Legacy drivers. Please"
    k80 = Machine(tmp_path / "k80", "k80", version="470.256.02")
    found = of_log(log, k80)["D1"]
    assert "580 is the last" in found.cause and "K80" not in found.cause
    assert found.example is not None


def test_what_a_line_names_is_taken_from_it(tmp_path: Path) -> None:
    line = "#error -- unsupported GNU version! gcc versions later than 11 are not supported!"
    found = of_log(line, None, "p40")["T2"]
    assert "gcc 11 or older" in "".join(found.fix) and "14" not in "".join(found.fix)
    assert of_log(line)["T2"].example is None
    debian = Machine(tmp_path, "p40")
    assert "g++-11 " in "".join(of_log(line, debian)["T2"].fix)
    kepler = of_log("nvcc fatal : Unsupported gpu architecture 'compute_37'", debian)["T1"]
    assert "3.7" in kepler.cause and "6.1" not in kepler.cause


def test_old_lines_of_the_kernel_log(tmp_path: Path) -> None:
    opened = (
        "[ 5.0] NVRM: installed in this system is not supported by open\n"
        "[ 5.0] NVRM: The NVIDIA probe routine failed for 1 device(s).\n"
        "[ 5.1] NVRM: GPU 0000:3b:00.0: RmInitAdapter failed! (0x24:0x72:1603)\n"
    )
    machine = Machine(tmp_path / "a", "p40")
    machine.write(
        "/var/log/dmesg",
        f"{opened}[ 90.0] nvidia-nvlink: Nvlink Core is being initialized, major device 510\n"
        "[ 90.1] NVRM: loading NVIDIA UNIX x86_64 Kernel Module  580.173.02\n",
    )
    assert machine.found() == set()
    facts = machine.facts()
    assert facts.kernel is not None and facts.kernel.log is not None
    assert len(facts.kernel.log.value) == 2
    machine.write("/var/log/dmesg", "\n".join(opened.splitlines()[:2]))  # no mark of a new load
    assert machine.found() == set()
    for folder, change in (
        ("b", lambda m: m.write("/var/log/dmesg", f"[ 0.0] Linux version 6.1.0-9\n{opened}")),
        ("c", lambda m: os.utime(m.write("/var/log/dmesg", opened), (1000, 1000))),
    ):
        old = Machine(tmp_path / folder, "p40")
        old.write("/proc/stat", "cpu 1 2 3\nbtime 1750000000\n")
        change(old)
        assert old.found() == set(), folder
    old.write("/var/log/dmesg", opened)
    assert "S3" in old.found()


def test_lines_stay_in_their_order_and_a_lost_gpu_stays() -> None:
    lines = (OFF_BUS, "NVRM: old", "nvidia-nvlink: Nvlink Core is being initialized", "NVRM: new")
    assert kernel.about_gpus(lines) == (lines[0], lines[2], lines[3])


def test_a_card_for_a_virtual_machine_beside_another(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "gtx1060-6gb")
    machine.gpu("p40", "0000:05:00.0", "vfio-pci")
    said = "[ 5.0] NVRM: The NVIDIA probe routine was not called for 1 device(s).\n"
    machine.write("/var/log/dmesg", said)
    diagnosis = diagnose(machine.facts())
    assert diagnosis.findings == () and diagnosis.verdict == "fine"
    assert any("virtual machine" in text for text in diagnosis.not_judged)
    machine.write("/var/log/dmesg", "NVRM: GPU 0000:05:00.0: RmInitAdapter failed! (0x24)\n")
    assert machine.found() == set()
    machine.write("/var/log/dmesg", "NVRM: GPU 0000:3b:00.0: RmInitAdapter failed! (0x24)\n")
    assert machine.found() == {"S3"}
    machine.write("/var/log/dmesg", said)
    machine.gpu("p4", "0000:06:00.0", None)
    assert "S1" in machine.found()


# ---------------------------------------------------------------------- fixes that are right


def test_a_fresh_machine_is_told_to_install_the_driver(tmp_path: Path) -> None:
    for system, says in (("debian", "legacy-cuda resolve p40"), ("nixos", "legacy_580;")):
        machine = Machine(tmp_path / system, "p40", version=None, system=system)
        machine.bind(machine.folder, "nouveau")
        (cause,) = diagnose(machine.facts()).causes
        assert cause.finding.rule.id == "D13"
        assert [item.rule.id for item in cause.follows] == ["D6"]
        assert says in "\n".join(cause.follows[0].fix)
    assert "hardware.nvidia.open = false;" in cause.follows[0].fix


SYSTEMS = ("debian", "ubuntu", "nixos", "arch")
PLAIN = ("debian", "ubuntu", "arch")


@pytest.mark.parametrize(
    ("rule_id", "gpu", "system", "says", "not_says"),
    [
        ("D1", "p40", "debian", "nvidia-driver-pinning-580", "nvidia-driver-pinning-470"),
        ("D1", "p40", "debian", "--allow-downgrades cuda-drivers-580", "?"),
        ("D1", "p40", "ubuntu", "install nvidia-driver-pinning-580", "first: $"),
        ("D2", "p40", "debian", "install nvidia-driver-pinning-580", "pinning-470"),
        ("D2", "p40", "debian", "purge nvidia-open nvidia-kernel-open-dkms", "pinning-470"),
        ("D2", "p40", "debian", "install nvidia-kernel-dkms nvidia-open-kernel-dkms- ", "?"),
        ("D3", "k80", "debian", "update-glx --config nvidia    # choose tesla-470", "?"),
        ("D13", "p40", "debian", "install linux-headers-amd64 nvidia-driver &&", "?"),
        ("D13", "k80", "debian", "linux-headers-amd64 nvidia-tesla-470-driver &&", "?"),
        *(("D14", "p40", system, "NVreg_TemporaryFilePath=/var/tmp", "?") for system in PLAIN),
        *(
            ("D14", "p40", system, "systemctl enable nvidia-suspend.service", "?")
            for system in PLAIN
        ),
        ("D15", "p40", "debian", "apt-get install nvidia-modprobe\n$ sudo nvidia-modprobe", "?"),
        ("D15", "p40", "nixos", "nixos-rebuild switch && sudo modprobe nvidia_uvm", "?"),
        ("D16", "k80", "debian", "libnvidia-tesla-470-cuda1", "?"),
        ("D16", "p40", "ubuntu", "$(cut -d. -f1 /sys/module/nvidia/version)", "compute-580"),
        ("H7", "k80", "debian", "legacy-cuda plan MODEL --gpu k80", "vLLM"),
        ("H1", "p40", "debian", "/sys/firmware/efi", "CSM (legacy boot) off\n"),
        ("P14", "k80", "nixos", "up k80 --engine llama-cpp", "NF4"),
        ("P14", "m40", "debian", "audit bitsandbytes==VERSION --gpu m40", "Kepler"),
        ("E7", "p40", "nixos", "cudaPackages = pkgs.cudaPackages_12_9;", "cudaPackages_12_9_"),
        ("D13", "p40", "ubuntu", "mokutil --sb-state", "?"),
        ("D13", "p40", "arch", "block nouveau", "?"),
        ("D19", "p40", "ubuntu", "update-secureboot-policy", "?"),
        ("D19", "p40", "debian", "/var/lib/dkms/mok.pub", "?"),
        *(("E7", "k80", system, "resolve k80 --engine", "cuda_v12") for system in SYSTEMS),
        *(("E7", "k80", system, "resolve k80 --engine", "cudaArches") for system in SYSTEMS),
        ("E7", "p40", "nixos", 'cudaArches = [ "61" ]', "resolve"),
        ("D9", "k80", "arch", "CUDA 11 or older", "newest driver"),
        *((rule, "k80", "arch", "TORCHDYNAMO", "build") for rule in ("P6", "P7", "P8", "P10")),
        ("P6", "p40", "arch", "build triton --for p40", "Kepler"),
        ("E10", "p40", "debian", "Proxmox", "?"),
        ("H1", "gtx970", "debian", "above-4G", "less than 32 GiB"),
        ("D6", "rtx3090", "nixos", "hardware.nvidia.open = true;", "?"),
    ],
)
def test_lines_of_fixes(
    rule_id: str, gpu: str, system: str, says: str, not_says: str, tmp_path: Path
) -> None:
    facts = Machine(tmp_path, gpu, system=system).facts()
    text = "\n".join(finding(facts, RULES[rule_id], ()).fix)
    assert says in text and not_says not in text


@pytest.mark.parametrize("system", ["debian", "ubuntu"])
@pytest.mark.parametrize("rule_id", ["D1", "D2"])
def test_the_branch_is_held_before_the_machine_starts_anew(rule_id: str, system: str) -> None:
    """Without it NVIDIA's repository brings the newest branch, which ignores the card."""
    lines = RULES[rule_id].fix[system]
    held = lines.index("$ sudo apt-get install nvidia-driver-pinning-{branch}")
    assert held < next(number for number, line in enumerate(lines) if "reboot" in line)


def test_settings_of_nixos_are_followed_by_a_rebuild() -> None:
    for rule in data.rules():
        lines = rule.fix.get("nixos", ())
        if any(line.startswith(("hardware.", "services.")) for line in lines):
            assert any(line.startswith("$ sudo nixos-rebuild ") for line in lines), rule.id


def test_a_container_reloads_no_module_of_its_host(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "p40")
    machine.write("/.dockerenv", "")
    for rule in data.rules():
        text = "\n".join(finding(machine.facts(), rule, ()).fix)
        assert not re.search(r"\$ .*\b(rmmod|modprobe)\b", text), (rule.id, text)


def test_every_name_in_braces_is_known() -> None:
    names = set(windows(catalog.find_gpu("p40")))
    for rule in data.rules():
        for line in (rule.cause, *sum(rule.fix.values(), ())):
            assert set(re.findall(r"\{([a-z_]+)\}", line)) <= names, line


def test_an_open_module_on_a_branch_that_dropped_the_card(tmp_path: Path) -> None:
    (cause,) = diagnose(Machine(tmp_path, "p40", version="595.71.05", opened=True).facts()).causes
    assert cause.finding.rule.id == "D1"
    assert [item.rule.id for item in cause.follows] == ["D2"]


def test_an_old_driver_alone_is_a_warning(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "p40", version="470.256.02")
    found = {item.rule.id: item for item in diagnose(machine.facts()).findings}
    assert found["D7"].severity == "warning" and diagnose(machine.facts()).verdict == "warnings"
    line = "CUDA driver version is insufficient for CUDA runtime version"
    assert of_log(line, machine)["D7"].severity == "error"
    one = replace(found["D7"], evidence=(Evidence("a", "x"),))
    for pair in ([one, of_log(line)["D7"]], [of_log(line)["D7"], one]):
        assert group(pair)[0].finding.severity == "error"


def test_nixos_patches_the_old_branch(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "k80", version=None, linux="7.0.1", system="nixos")
    assert machine.found() == {"D13", "H7"}


def test_sources_of_a_numbered_package(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "k80", version=None, linux="7.0.1")
    machine.write("/usr/src/nvidia-tesla-470-470.256.02/dkms.conf", "")
    driver = machine.facts().driver
    assert driver is not None and [item.value for item in driver.sources] == ["470.256.02"]


# ------------------------------------------------------------------ what is not found, not seen


def test_a_kernel_log_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_log, "read", lambda: None)
    monkeypatch.setattr(kernel, "FILES", (str(tmp_path / "none"),))
    place = Place()
    assert kernel.look(place).log is None
    assert any("sudo dmesg | legacy-cuda doctor --log -" in text for text in place.problems)
    assert not any("dmesg" in item.what for item in Machine(tmp_path, "p40").facts().failures)


def test_the_end_of_a_long_kernel_log(monkeypatch: pytest.MonkeyPatch) -> None:
    class Done:
        returncode = 0
        stdout = b"half" * (9 << 18) + b"\nwhole\n" + b"x" * (7 << 20) + b"end"

    monkeypatch.setattr(subprocess, "run", lambda *_, **__: Done)
    monkeypatch.setattr(os, "access", lambda *_: True)
    said = system_log.read()
    assert said is not None and len(said.text) <= 8 << 20 and said.text.endswith("end")
    assert said.text.startswith("whole\n")


def test_only_kernel_texts_are_looked_for_in_the_kernel_log(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "p40")
    machine.write("/var/log/dmesg", "NVRM: API mismatch: the client has the version 570.1, but\n")
    assert machine.found() == {"D5"}
    assert diagnose(machine.facts()).verdict == "warnings"  # a container's, or over
    machine.driver("570.211.01")
    assert diagnose(machine.facts()).verdict == "errors"
    machine.driver(GOOD)
    machine.write("/var/log/dmesg", "nvidia: Driver/library version mismatch\n")
    assert machine.found() == set()


def test_no_pci_bus_is_not_no_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = Machine(tmp_path)
    (tmp_path / "sys/bus/pci/devices").rmdir()
    diagnosis = diagnose(machine.facts())
    assert diagnosis.fine == ()
    assert [item.probe for item in diagnosis.failures] == ["pci"]
    assert "/sys/bus/pci/devices" in diagnosis.failures[0].what
    assert main(["doctor", "--root", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "nothing was judged" in text and "nothing wrong" not in text


@pytest.mark.parametrize(
    ("mark", "name"), [("/dev/dxg", "WSL2"), ("/etc/nv_tegra_release", "Jetson")]
)
def test_gpus_beside_the_pci_bus(mark: str, name: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path, version=None)
    machine.write(mark, "")
    diagnosis = diagnose(machine.facts())
    assert diagnosis.fine == () and name in diagnosis.not_judged[0]


def test_an_unknown_card_gets_no_praise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = Machine(tmp_path, version=None)
    machine.gpu(STRANGER, "0000:05:00.0", "nouveau")
    diagnosis = diagnose(machine.facts())
    assert diagnosis.fine == () and "nouveau" in diagnosis.not_judged[0]
    code, document = run_json(capsys, "--root", str(tmp_path))
    assert code == 0 and document["not_judged"] == list(diagnosis.not_judged)
    validate(document)
    assert main(["doctor", "--root", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "nothing was judged" in text and "not judged" in text
    no_place(machine)
    assert machine.found() == {"H1"}
    other = Machine(tmp_path / "other", STRANGER)
    other.remove("/dev/nvidia-uvm")
    assert other.found() == {"D15"}


def test_a_card_of_which_an_error_speaks_is_not_fine(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "p40", "v100", version="590.48.01")
    machine.gpu("p4", "0000:05:00.0", "nouveau")
    fine = diagnose(machine.facts()).fine
    assert not any(" at 0000:" in text for text in fine)  # D1 names the first two, D6 the last
    machine = Machine(tmp_path / "lost", "p40", "p40")
    line = "[    9.1] NVRM: Xid (PCI:0000:3c:00): 79, GPU has fallen off the bus.\n"
    machine.write("/var/log/dmesg", line)
    diagnosis = diagnose(machine.facts())
    assert diagnosis.verdict == "errors"
    assert [text for text in diagnosis.fine if " at 0000:" in text] == [
        "Tesla P40 (6.1) at 0000:3b:00.0"
    ]


def test_a_driver_that_is_not_bound_serves_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "p40")
    assert any("serves the cards" in text for text in diagnose(machine.facts()).fine)
    for driver in (None, "nouveau"):
        machine.gpu("p4", "0000:05:00.0", driver)
        assert not any("serves the cards" in text for text in diagnose(machine.facts()).fine)


@pytest.mark.parametrize("folder", ["/opt/driver/lib", "/usr/lib/aarch64-linux-gnu"])
def test_libcuda_where_the_loader_looks(folder: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path, "p40")
    for name in ("libcuda.so.1", f"libcuda.so.{GOOD}"):
        machine.remove(f"/usr/lib/x86_64-linux-gnu/{name}")
    assert machine.found() == {"D16"}
    machine.library(f"{folder}/libcuda.so.{GOOD}")
    if folder.startswith("/opt"):
        machine.write("/etc/ld.so.conf.d/driver.conf", f"{folder}\n")
        by_variable = libcuda.look(Place(tmp_path / "x"), {"LD_LIBRARY_PATH": folder})
        assert by_variable.found == ()
    assert machine.found() == set()


def test_compat_of_nvidias_images(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "gtx1080ti")
    machine.library("/usr/local/cuda-13.3/compat/lib.real/libcuda.so.610.57.04")
    machine.link("/usr/local/cuda-13.3/compat/lib", "lib.real")
    machine.link("/usr/local/cuda", "/etc/alternatives/cuda")
    machine.link("/etc/alternatives/cuda", "/usr/local/cuda-13.3")
    assert machine.found() == set()
    machine.write("/etc/ld.so.conf.d/00-compat.conf", "/usr/local/cuda/compat/lib\n")
    assert machine.found() == {"D10"}
    own = {"LD_LIBRARY_PATH": "/usr/lib/x86_64-linux-gnu:/usr/local/cuda/compat/lib"}
    assert libcuda.look(Place(tmp_path), own).compat_first is None  # the driver's comes first


@pytest.mark.parametrize("gpu", ["h100", "a6000", "p40"])
def test_compat_is_allowed_or_not_known_to_be_refused(gpu: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path, gpu)
    compat(machine, "610.57.04")
    assert machine.found() == set()


def test_lanes_of_virtual_machines(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "p40")
    machine.write(f"{machine.folder}/current_link_width", "1\n")
    machine.write(f"{machine.folder.rpartition('/')[0]}/vendor", "0x1b36\n")
    assert machine.found() == set()


def test_lanes_of_a_card_with_a_switch(tmp_path: Path) -> None:
    machine = Machine(tmp_path, version="470.256.02")
    root = "/sys/devices/pci0000:00/0000:00:02.0"
    upstream = f"{root}/0000:03:00.0"
    for address, port in (("0000:05:00.0", "08"), ("0000:06:00.0", "10")):
        machine.gpu("k80", address, "nvidia")
        folder = f"{upstream}/0000:04:{port}.0/{address}"
        (tmp_path / folder.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / machine.folder.lstrip("/")).rename(tmp_path / folder.lstrip("/"))
        machine.link(f"/sys/bus/pci/devices/{address}", f"../../..{folder.removeprefix('/sys')}")
    machine.write(f"{root}/max_link_width", "16\n")
    machine.write(f"{upstream}/max_link_width", "16\n")
    machine.write(f"{upstream}/current_link_width", "16\n")
    assert machine.found() == {"D11", "H7"}
    machine.write(f"{upstream}/current_link_width", "8\n")
    assert machine.found() == {"D11", "H7", "H8"}


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/run/secrets/kubernetes.io/serviceaccount/token", ""),
        ("/proc/1/cgroup", "0::/kubepods/burstable/pod1/abc\n"),
        ("/.singularity.d/runscript", ""),
    ],
)
def test_containers_of_other_engines(path: str, text: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path, "p40")
    machine.write("/proc/1/cgroup", "0::/init.scope\n")
    assert machine.facts().system.container is None  # type: ignore[union-attr]
    machine.write(path, text)
    assert machine.facts().system.container is not None  # type: ignore[union-attr]


def test_standard_input_that_is_closed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["doctor", "--log", "-"]) == 2
    assert "standard input is closed" in capsys.readouterr().err


def test_a_log_that_may_not_be_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert main(["doctor", "--log", str(tmp_path / "a.log")]) == 3
    assert "sudo cat FILE" in capsys.readouterr().err


def test_a_long_line_is_matched_in_time() -> None:
    line = "error   : Feature 'cvt" + "bf16" * 470 + " requires .target sm_80 or higher\n"
    begin = time.monotonic()
    assert ids(line * 3000) == []  # seconds: 11 with an unbounded regex, 0.1 without
    assert time.monotonic() - begin < 6
