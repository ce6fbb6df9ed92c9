"""The catalog's GPUs and capabilities, held against their schemas, each other and pci.ids.

pci.ids is the public PCI id database (Debian packages pci.ids and hwdata). These tests read the
system's copy; without one they fail. ``LEGACY_CUDA_PCI_IDS`` may name another copy.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from jsonschema import Draft202012Validator

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CATALOG = Path(__file__).parents[2] / "python/src/legacy_cuda/catalog"
PCI_IDS_PATHS = (Path("/usr/share/misc/pci.ids"), Path("/usr/share/hwdata/pci.ids"))

CAPABILITY_NUMBERS = [
    "3.0",
    "3.2",
    "3.5",
    "3.7",
    "5.0",
    "5.2",
    "5.3",
    "6.0",
    "6.1",
    "6.2",
    "7.0",
    "7.2",
    "7.5",
    "8.0",
    "8.6",
    "8.7",
    "8.9",
    "9.0",
    "10.0",
    "10.3",
    "11.0",
    "12.0",
    "12.1",
]

REQUIRED_GPUS = [
    "k40",
    "k80",
    "m40",
    "m40-24gb",
    "m60",
    "m2000",
    "p100",
    "p100-12gb",
    "p100-sxm2",
    "p40",
    "p4",
    "p6000",
    "p5000",
    "p4000",
    "p2000",
    "gtx1050ti",
    "gtx1060-3gb",
    "gtx1060-6gb",
    "gtx1070",
    "gtx1080",
    "gtx1080ti",
    "titan-x-maxwell",
    "titan-x-pascal",
    "titan-xp",
    "gtx980",
    "gtx980ti",
    "v100",
    "v100-32gb",
    "v100-sxm2",
    "v100-sxm2-32gb",
    "titan-v",
    "t4",
    "rtx2080ti",
    "a100",
    "rtx3090",
    "a10",
    "l4",
    "rtx4090",
    "l40s",
    "h100",
    "h200",
    "b200",
    "rtx5090",
]

# pci.ids names that are the catalog's product although the words differ: id -> (name, reason).
NAME_EXCEPTIONS = {
    "10de:1021": ("Tesla K20Xm", "the module form of the K20X"),
    "10de:1023": ("Tesla K40m", "the K40 without a fan"),
    "10de:1024": ("Tesla K40c", "the K40 with a fan"),
    "10de:1029": ("Tesla K40s", "the K40 without a fan, another bracket"),
    "10de:1b00": ("TITAN X", "pci.ids says which TITAN X only since 2023"),
}
# The same for an id that two catalog cards share: (id, card) -> (name, reason).
SHARED_NAME_EXCEPTIONS = {
    ("10de:17fd", "m40-24gb"): ("Tesla M40", "pci.ids does not tell the two memory sizes apart"),
}
# Where pci.ids' chip is not the catalog row's: id -> (pci.ids' chip, reason).
CHIP_EXCEPTIONS = {
    "10de:1024": ("GK180", "GK180 is the GK110B of the K40c"),
    "10de:1b83": ("GP104", "late GTX 1060 6GB boards carry a cut-down GP104, capability 6.1 too"),
    "10de:1b84": ("GP104", "late GTX 1060 3GB boards carry a cut-down GP104, capability 6.1 too"),
}
# Ids that are missing in databases older than the version given; all of them are in that version.
NEWER_IDS = {
    "2025.11.04": {
        "10de:26b9",  # L40S
        "10de:2335",  # H200
        "10de:2901",  # B200
        "10de:2b00",  # Jetson AGX Thor
        "10de:2b85",  # RTX 5090
        "10de:2e12",  # GB10
    }
}

Row = dict[str, Any]


class PciName(NamedTuple):
    """One device of pci.ids: ``GP102GL [Tesla P40]`` is chip GP102, name Tesla P40."""

    chip: str
    name: str


class PciIds(NamedTuple):
    """NVIDIA's part of pci.ids, by ``10de:xxxx``, and the database's version (2023.04.10)."""

    version: str
    devices: dict[str, PciName]


def load(name: str) -> Row:
    return tomllib.loads((CATALOG / "data" / f"{name}.toml").read_text(encoding="utf-8"))


GPUS: list[Row] = load("gpus")["gpu"]
SHARED: list[str] = load("gpus")["shared_pci_ids"]
CAPABILITIES: list[Row] = load("capabilities")["capability"]
BY_CAPABILITY = {row["capability"]: row for row in CAPABILITIES}
LEGACY_GPUS = [gpu for gpu in GPUS if BY_CAPABILITY[gpu["capability"]]["legacy"]]


def number(capability: str) -> tuple[int, int]:
    major, minor = capability.split(".")
    return int(major), int(minor)


def ratio(text: str) -> float:
    if text == "none":
        return 0.0
    left, right = text.split(":")
    return int(left) / int(right)


def split_pci_name(text: str) -> PciName:
    """Split pci.ids' device text; the suffixes GL, M and GLM of the product line are dropped."""
    match = re.fullmatch(r"([A-Z0-9]+)\s*(?:\[(.*)\])?.*", text)
    if match is None:
        return PciName("", text)
    return PciName(re.sub(r"(GLM|GL|M)$", "", match[1]), match[2] or "")


def read_pci_ids(text: str) -> PciIds:
    version = re.search(r"^#\s*Version:\s*(\S+)", text, re.MULTILINE)
    devices: dict[str, PciName] = {}
    ours = False
    for line in text.splitlines():
        if re.match(r"[0-9a-fA-F]{4}  ", line):
            ours = line.startswith("10de")
        elif ours and (device := re.match(r"\t([0-9a-f]{4})  (.*)", line)):
            devices["10de:" + device[1]] = split_pci_name(device[2].strip())
    return PciIds(version[1] if version else "", devices)


@pytest.fixture(scope="module")
def pci_ids() -> PciIds:
    named = os.environ.get("LEGACY_CUDA_PCI_IDS")
    for path in (Path(named),) if named else PCI_IDS_PATHS:
        if path.is_file():
            return read_pci_ids(path.read_text(encoding="utf-8", errors="replace"))
    pytest.fail(
        f"no PCI id database at {named or ' or '.join(map(str, PCI_IDS_PATHS))}; install it "
        "(Debian: apt-get install pci.ids) or name a copy in LEGACY_CUDA_PCI_IDS"
    )


def words(name: str) -> list[str]:
    """The words of a product name, sorted, without NVIDIA, without revisions and limiters.

    ``GeForce RTX 2080 Ti Rev. A`` and ``GeForce RTX 3060 Lite Hash Rate`` are the same products
    as without the ending. ``16GB`` and ``16 GB`` are the same word.
    """
    text = re.sub(r"\s+(Rev\. \w+|Lite Hash Rate)$", "", name).lower()
    text = re.sub(r"(\d) gb\b", r"\1gb", text)
    return sorted(set(re.findall(r"[a-z0-9]+", text)) - {"nvidia"})


def gpu_ids() -> Iterator[tuple[Row, str]]:
    for gpu in GPUS:
        for pci_id in gpu["pci_ids"]:
            yield gpu, pci_id


def missing_is_known(pci_id: str, version: str) -> bool:
    return any(version < since and pci_id in ids for since, ids in NEWER_IDS.items())


@pytest.mark.parametrize("name", ["gpus", "capabilities"])
def test_file_follows_its_schema(name: str) -> None:
    schema = json.loads((CATALOG / "schema" / f"{name}.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    errors = [
        f"{list(error.absolute_path)}: {error.message}"
        for error in Draft202012Validator(schema).iter_errors(load(name))
    ]
    assert errors == []


def broken(name: str, row: int, **changes: Any) -> Row:
    """The catalog file with one row changed; the value None removes a key."""
    data = load(name)
    target = data["gpu" if name == "gpus" else "capability"][row]
    for key, value in changes.items():
        if value is None:
            del target[key]
        else:
            target[key] = value
    return data


@pytest.mark.parametrize(
    ("name", "key", "which", "changes"),
    [
        ("gpus", "name", "p40", {"bandwidth_gb_s": None}),
        ("gpus", "name", "p40", {"surprise": 1}),
        ("gpus", "name", "p40", {"pci_ids": ["1b38"]}),
        ("gpus", "name", "p40", {"pci_ids": ["10de:1B38"]}),
        ("gpus", "name", "p40", {"capability": "6"}),
        ("gpus", "name", "gtx1080", {"usable_mib_ecc_on": 8000}),
        ("gpus", "name", "t4", {"source": None}),
        ("capabilities", "capability", "6.1", {"fp16_fp32_ratio": None}),
        ("capabilities", "capability", "6.1", {"fp16_fp32_ratio": "1/64"}),
        ("capabilities", "capability", "8.0", {"dp4a": "yes"}),
    ],
)
def test_schema_refuses(name: str, key: str, which: str, changes: Row) -> None:
    schema = json.loads((CATALOG / "schema" / f"{name}.schema.json").read_text(encoding="utf-8"))
    rows = GPUS if name == "gpus" else CAPABILITIES
    index = [row[key] for row in rows].index(which)
    assert not Draft202012Validator(schema).is_valid(broken(name, index, **changes))


def test_schema_knows_the_legacy_capabilities() -> None:
    text = (CATALOG / "schema" / "gpus.schema.json").read_text(encoding="utf-8")
    conditions = json.loads(text)["properties"]["gpu"]["items"]["allOf"]
    listed = conditions[0]["if"]["properties"]["capability"]["enum"]
    assert listed == [row["capability"] for row in CAPABILITIES if row["legacy"]]


def test_every_capability_is_there_once_and_in_order() -> None:
    assert [row["capability"] for row in CAPABILITIES] == CAPABILITY_NUMBERS


@pytest.mark.parametrize("row", CAPABILITIES, ids=CAPABILITY_NUMBERS)
def test_capability_facts(row: Row) -> None:
    capability = number(row["capability"])
    assert row["legacy"] == ((3, 5) <= capability <= (7, 0))
    assert row["dp4a"] == (capability >= (6, 1))
    assert row["tensor_cores"] == (capability >= (7, 0))
    assert row["bf16"] == (capability >= (8, 0))
    assert row["half_atomics"] == (capability >= (7, 0))
    assert row["double_atomics"] == (capability >= (6, 0))
    assert row["open_kernel_module"] == (capability >= (7, 5))
    assert row["shared_memory_per_block_kib"] == 48
    if capability < (7, 0):
        assert row["shared_memory_optin_kib"] == 48
    else:
        assert 64 <= row["shared_memory_optin_kib"] <= 227
    if "fp16_fp32_ratio" in row:
        assert (row["fp16_fp32_ratio"] == "none") == (capability < (5, 3))
        assert ratio(row["fp16_fp32_ratio"]) <= 4
    if "fp64_fp32_ratio" in row:
        assert 1 / 64 <= ratio(row["fp64_fp32_ratio"]) <= 1 / 2


def test_arithmetic_of_the_cards_that_matter() -> None:
    """NVIDIA's throughput tables: the facts that decide how a model is run."""
    ratios = {c: BY_CAPABILITY[c]["fp16_fp32_ratio"] for c in ("3.7", "5.2", "6.0", "6.1", "7.0")}
    assert ratios == {"3.7": "none", "5.2": "none", "6.0": "2:1", "6.1": "1:64", "7.0": "2:1"}
    assert BY_CAPABILITY["7.0"]["shared_memory_optin_kib"] == 96


def test_a_chip_has_one_capability() -> None:
    counts = Counter(chip for row in CAPABILITIES for chip in row["chips"])
    assert [chip for chip, count in counts.items() if count > 1] == []


def test_architecture_fits_the_chips() -> None:
    letters = {"Kepler": "GK", "Maxwell": "GM", "Pascal": "GP", "Volta": "GV", "Turing": "TU"}
    letters |= {"Ampere": "GA", "Ada Lovelace": "AD", "Hopper": "GH", "Blackwell": "GB"}
    for row in CAPABILITIES:
        assert all(chip.startswith(letters[row["architecture"]]) for chip in row["chips"]), row


def test_required_gpus_are_there() -> None:
    assert set(REQUIRED_GPUS) - {gpu["name"] for gpu in GPUS} == set()


def test_every_pc_legacy_capability_has_a_gpu() -> None:
    jetson = {"5.3", "6.2"}
    expected = {row["capability"] for row in CAPABILITIES if row["legacy"]} - jetson
    assert {gpu["capability"] for gpu in LEGACY_GPUS} == expected


def test_names_and_aliases_are_unique_even_without_hyphens() -> None:
    owners: dict[str, set[str]] = defaultdict(set)
    spellings: Counter[str] = Counter()
    for gpu in GPUS:
        for name in (gpu["name"], *gpu["aliases"]):
            spellings[name] += 1
            owners[name.replace("-", "")].add(gpu["name"])
    assert [name for name, count in spellings.items() if count > 1] == []
    assert {name: cards for name, cards in owners.items() if len(cards) > 1} == {}


def test_products_are_unique() -> None:
    assert len({gpu["product"] for gpu in GPUS}) == len(GPUS)


@pytest.mark.parametrize("gpu", GPUS, ids=[gpu["name"] for gpu in GPUS])
def test_capability_and_chip_exist(gpu: Row) -> None:
    assert gpu["capability"] in BY_CAPABILITY
    assert gpu["chip"] in BY_CAPABILITY[gpu["capability"]]["chips"]


def test_only_the_listed_ids_are_shared() -> None:
    owners: dict[str, list[str]] = defaultdict(list)
    for gpu, pci_id in gpu_ids():
        owners[pci_id].append(gpu["name"])
    shared = {pci_id: names for pci_id, names in owners.items() if len(names) > 1}
    assert sorted(shared) == sorted(SHARED)
    assert shared == {"10de:17fd": ["m40", "m40-24gb"]}


def test_cards_of_a_shared_id_have_one_capability_and_can_be_told_apart() -> None:
    for pci_id in SHARED:
        cards = [gpu for gpu in GPUS if pci_id in gpu["pci_ids"]]
        assert len({card["capability"] for card in cards}) == 1
        assert len({card["memory_mib"] for card in cards}) == len(cards)
        assert len({card.get("pci_subsystem") for card in cards}) == len(cards)


def test_a_subsystem_is_only_given_where_it_decides() -> None:
    for gpu in GPUS:
        if "pci_subsystem" in gpu:
            assert set(gpu["pci_ids"]) & set(SHARED), gpu["name"]


def test_pci_ids_are_in_the_database(pci_ids: PciIds) -> None:
    missing = [
        f"{gpu['name']} {pci_id}"
        for gpu, pci_id in gpu_ids()
        if pci_id not in pci_ids.devices and not missing_is_known(pci_id, pci_ids.version)
    ]
    assert missing == []


def test_products_are_those_of_the_database(pci_ids: PciIds) -> None:
    wrong = []
    for gpu, pci_id in gpu_ids():
        if pci_id not in pci_ids.devices:
            continue
        name = pci_ids.devices[pci_id].name
        exceptions = (
            NAME_EXCEPTIONS.get(pci_id),
            SHARED_NAME_EXCEPTIONS.get((pci_id, gpu["name"])),
        )
        if words(name) != words(gpu["product"]) and name not in {e[0] for e in exceptions if e}:
            wrong.append(f"{gpu['name']} {pci_id}: {gpu['product']!r}, pci.ids says {name!r}")
    assert wrong == []


def test_chips_are_those_of_the_database(pci_ids: PciIds) -> None:
    wrong = []
    for gpu, pci_id in gpu_ids():
        if pci_id not in pci_ids.devices:
            continue
        chip = pci_ids.devices[pci_id].chip
        expected = CHIP_EXCEPTIONS[pci_id][0] if pci_id in CHIP_EXCEPTIONS else gpu["chip"]
        if chip != expected:
            wrong.append(f"{gpu['name']} {pci_id}: {expected}, pci.ids says {chip}")
        if chip not in BY_CAPABILITY[gpu["capability"]]["chips"]:
            wrong.append(f"{gpu['name']} {pci_id}: {chip} is not of {gpu['capability']}")
    assert wrong == []


def test_every_exception_is_used() -> None:
    used = {pci_id for _, pci_id in gpu_ids()}
    listed = set(NAME_EXCEPTIONS) | set(CHIP_EXCEPTIONS) | set().union(*NEWER_IDS.values())
    assert listed - used == set()
    assert {pci_id for pci_id, _ in SHARED_NAME_EXCEPTIONS} == set(SHARED)


def test_pci_names_are_split() -> None:
    assert split_pci_name("GP102GL [Tesla P40]") == ("GP102", "Tesla P40")
    assert split_pci_name("GK110BGL [Tesla K40m]") == ("GK110B", "Tesla K40m")
    assert split_pci_name("GH100[H100 SXM5 80GB]") == ("GH100", "H100 SXM5 80GB")
    assert split_pci_name("GP106M") == ("GP106", "")
    assert words("GeForce GTX 1060 6GB Rev. 2") == words("GeForce GTX 1060 6 GB")
    assert words("GeForce GTX 1060 6GB") != words("GeForce GTX 1060 3GB")


def test_legacy_cards_are_sorted_and_come_first() -> None:
    numbers = [number(gpu["capability"]) for gpu in GPUS]
    assert numbers == sorted(numbers)


@pytest.mark.parametrize("gpu", LEGACY_GPUS, ids=[gpu["name"] for gpu in LEGACY_GPUS])
def test_figures_are_plausible(gpu: Row) -> None:
    hbm = gpu["memory_type"] == "HBM2"
    assert hbm == (gpu["chip"] in {"GP100", "GV100"})
    low, high = (500, 1200) if hbm else (80, 550)
    assert low <= gpu["bandwidth_gb_s"] <= high
    assert 1 <= gpu["fp32_tflops"] <= 17
    assert 40 <= gpu["tdp_w"] <= 300
    assert 2048 <= gpu["memory_mib"] <= 32768
    assert gpu["memory_mib"] % 1024 == 0
    assert (gpu["dies"] == 2) == (gpu["name"] in {"k80", "m60"})
    if gpu["product"].startswith("Tesla"):
        assert gpu["ecc"]
        assert gpu["cooling"] in {"passive", "either"}
    if gpu["product"].startswith("GeForce"):
        assert not gpu["ecc"]
    if gpu["product"].startswith(("GeForce", "Quadro", "TITAN")):
        assert gpu["cooling"] == "active"


@pytest.mark.parametrize("gpu", LEGACY_GPUS, ids=[gpu["name"] for gpu in LEGACY_GPUS])
def test_usable_memory_is_a_little_below_what_was_sold(gpu: Row) -> None:
    """ECC takes a sixteenth of GDDR5, nothing of HBM2; the driver up to 3 % of the rest."""
    off = gpu.get("usable_mib_ecc_off")
    on = gpu.get("usable_mib_ecc_on")
    kept = gpu["memory_mib"] if gpu["memory_type"] == "HBM2" else gpu["memory_mib"] * 15 / 16
    if off is not None:
        assert 0.97 * gpu["memory_mib"] <= off < gpu["memory_mib"]
    if on is not None:
        assert 0.97 * kept <= on < kept
    if on is not None and off is not None:
        assert on <= off
