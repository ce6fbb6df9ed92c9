"""The windows of the catalog: driver branches, toolkits, cuDNN and engines.

The first tests ask whether the files keep to their schemas and to the order and coverage that
readers rely on; the later ones state in words what the data must answer.
"""

from __future__ import annotations

import copy
import json
import re
import sys
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from legacy_cuda import catalog
from legacy_cuda.capability import Capability

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CATALOG = Path(__file__).resolve().parents[2] / "python" / "src" / "legacy_cuda" / "catalog"
FILES = ("drivers", "toolkits", "cudnn", "engines")

# Every capability of a CUDA GPU from Kepler to Blackwell (CUDA C++ Programming Guide, "Compute
# Capabilities"; 10.1 was renamed 11.0 by CUDA 13.0).
CAPABILITIES = [
    Capability(*pair)
    for pair in [
        *((3, 0), (3, 2), (3, 5), (3, 7)),
        *((5, 0), (5, 2), (5, 3)),
        *((6, 0), (6, 1), (6, 2)),
        *((7, 0), (7, 2), (7, 5)),
        *((8, 0), (8, 6), (8, 7), (8, 9), (9, 0)),
        *((10, 0), (10, 3), (11, 0), (12, 0), (12, 1)),
    ]
]
LEGACY = [c for c in CAPABILITIES if Capability(3, 5) <= c <= Capability(7, 0)]
BLACKWELL = Capability(10, 0)
TURING = Capability(7, 5)


def load(name: str) -> dict[str, Any]:
    text = (CATALOG / "data" / f"{name}.toml").read_text(encoding="utf-8")
    document: dict[str, Any] = tomllib.loads(text)
    return document


def load_schema(name: str) -> dict[str, Any]:
    text = (CATALOG / "schema" / f"{name}.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(load_schema(name))


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def low(row: dict[str, Any]) -> Capability:
    return Capability.parse(row["capability_min"])


def high(row: dict[str, Any]) -> Capability:
    return Capability.parse(row["capability_max"])


def holds(row: dict[str, Any], *capabilities: str) -> bool:
    return all(low(row) <= Capability.parse(c) <= high(row) for c in capabilities)


BRANCHES: list[dict[str, Any]] = load("drivers")["branch"]
TOOLKITS: list[dict[str, Any]] = load("toolkits")["toolkit"]
CUDNN: list[dict[str, Any]] = load("cudnn")["cudnn"]
ENGINES: dict[str, dict[str, Any]] = {e["name"]: e for e in load("engines")["engine"]}


def branches_for(*capabilities: str) -> list[str]:
    """Branches one of whose kernel modules drives all of these at once, as 'branch flavour'."""
    return [
        f"{branch['branch']} {module['flavour']}"
        for branch in BRANCHES
        for module in branch["module"]
        if holds(module, *capabilities)
    ]


def branches_knowing(capability: str) -> set[str]:
    """Branches that drive this one with some kernel module."""
    return {text.split()[0] for text in branches_for(capability)}


def toolkits_for(*capabilities: str) -> list[str]:
    return [t["version"] for t in TOOLKITS if holds(t, *capabilities)]


def rules_for(engine: str, capability: str) -> list[dict[str, Any]]:
    return [rule for rule in ENGINES[engine]["rule"] if holds(rule, capability)]


def verdict(engine: str, capability: str) -> str:
    (rule,) = rules_for(engine, capability)
    return str(rule["verdict"])


def provenance_rows() -> list[tuple[str, dict[str, Any]]]:
    rows: list[tuple[str, dict[str, Any]]] = []
    for branch in BRANCHES:
        rows.append((f"branch {branch['branch']}", branch))
        rows += [(f"branch {branch['branch']} {m['flavour']}", m) for m in branch["module"]]
    rows += [(f"toolkit {t['version']}", t) for t in TOOLKITS]
    rows += [(f"cudnn {c['capability_min']}", c) for c in CUDNN]
    for name, engine in ENGINES.items():
        rows.append((name, engine))
        rows += [(f"{name} {r['capability_min']}", r) for r in engine["rule"]]
    return rows


# --- the files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_file_keeps_to_its_schema(name: str) -> None:
    Draft202012Validator.check_schema(load_schema(name))
    found = validator(name).iter_errors(load(name))
    errors = [f"{error.json_path}: {error.message}" for error in found]
    assert errors == []


def objects_of(schema: Any) -> list[dict[str, Any]]:
    """Every subschema that declares properties of its own."""
    found: list[dict[str, Any]] = []
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            found.append(schema)
        for value in schema.values():
            found += objects_of(value)
    elif isinstance(schema, list):
        for value in schema:
            found += objects_of(value)
    return found


@pytest.mark.parametrize("name", FILES)
def test_schema_is_closed_and_described(name: str) -> None:
    schema = load_schema(name)
    assert schema["$schema"].endswith("/draft/2020-12/schema")
    assert len(objects_of(schema)) >= 2
    for part in objects_of(schema):
        assert part["additionalProperties"] is False
        assert part["description"]
        assert set(part["required"]) <= set(part["properties"])
        for key, value in part["properties"].items():
            described = value.get("description") or schema["$defs"].get(
                value.get("$ref", "").rpartition("/")[2], {}
            ).get("description")
            assert described, f"{key} has no description"


MUTATIONS = [
    ("drivers", ["branch", 0, "surprise"], "x"),
    ("drivers", ["branch", 0, "branch"], 580),
    ("drivers", ["branch", 0, "cuda"], "11"),
    ("drivers", ["branch", 0, "end_of_life"], "2024-13"),
    ("drivers", ["branch", 0, "module"], []),
    ("drivers", ["branch", 0, "module", 0, "flavour"], "nouveau"),
    ("drivers", ["branch", 0, "module", 0, "capability_min"], "3"),
    ("drivers", ["branch", 0, "kernel_note"], None),
    ("drivers", ["branch", 0, "status"], "likely"),
    ("toolkits", ["toolkit", 0, "driver_min"], "R440"),
    ("toolkits", ["toolkit", 0, "gcc_max"], "8"),
    ("toolkits", ["toolkit", 0, "source"], None),
    ("toolkits", ["ptx_rule"], ""),
    ("cudnn", ["cudnn", 0, "dropped_in"], None),
    ("cudnn", ["cudnn", 0, "capability_max"], "3.70"),
    ("engines", ["engine", 0, "name"], "Torch"),
    ("engines", ["engine", 0, "rule", 0, "verdict"], "maybe"),
    ("engines", ["engine", 0, "rule", 0, "instead"], []),
    ("engines", ["engine", 0, "rule", 0, "reason"], None),
]


@pytest.mark.parametrize(("name", "where", "value"), MUTATIONS)
def test_schema_refuses(name: str, where: list[str | int], value: object) -> None:
    document = copy.deepcopy(load(name))
    target: Any = document
    for step in where[:-1]:
        target = target[step]
    if value is None:
        del target[where[-1]]
    else:
        target[where[-1]] = value
    assert not validator(name).is_valid(document)


@pytest.mark.parametrize("name", FILES)
def test_file_names_no_host_and_no_local_path(name: str) -> None:
    text = (CATALOG / "data" / f"{name}.toml").read_text(encoding="utf-8")
    assert "://" not in text
    assert re.findall(r"\b[\w-]+\.(?:org|com|io|net|dev)\b", text) == []
    assert re.findall(r"(?<![\w.])/(?:home|root|tmp|work|opt|usr)\b", text) == []


@pytest.mark.parametrize(("label", "row"), provenance_rows(), ids=lambda v: v if v else "")
def test_row_says_how_it_is_known(label: str, row: dict[str, Any]) -> None:
    assert row["status"] in {"measured", "sourced", "unverified"}, label
    assert row["source"].strip() == row["source"]
    if "capability_min" in row:
        assert low(row) <= high(row)
        assert low(row) in CAPABILITIES
        assert high(row) in CAPABILITIES


# --- driver branches -----------------------------------------------------------------------------


def test_branches_rise() -> None:
    for older, newer in pairwise(BRANCHES):
        assert int(older["branch"]) < int(newer["branch"])
        assert version(older["cuda"]) < version(newer["cuda"])
        assert version(older["ptx_isa"]) < version(newer["ptx_isa"])
        assert version(older["latest"]) < version(newer["latest"])


@pytest.mark.parametrize("branch", BRANCHES, ids=lambda b: b["branch"])
def test_branch_is_consistent(branch: dict[str, Any]) -> None:
    assert branch["latest"].split(".")[0] == branch["branch"]
    flavours = [module["flavour"] for module in branch["module"]]
    assert len(set(flavours)) == len(flavours)
    if "kernel_fixed_by" in branch:
        assert branch["kernel_fixed_by"].split(".")[0] == branch["branch"]
        assert version(branch["kernel_fixed_by"]) <= version(branch["latest"])


@pytest.mark.parametrize("branch", BRANCHES, ids=lambda b: b["branch"])
def test_branch_agrees_with_the_toolkit_it_implements(branch: dict[str, Any]) -> None:
    (toolkit,) = [t for t in TOOLKITS if t["version"] == branch["cuda"]]
    assert toolkit["ptx_isa"] == branch["ptx_isa"]
    assert toolkit["driver_shipped"].split(".")[0] == branch["branch"]


def test_module_flavours_keep_to_the_hardware() -> None:
    for branch in BRANCHES:
        for module in branch["module"]:
            if module["flavour"] == "open":
                assert low(module) >= TURING, branch["branch"]
            else:
                assert high(module) < BLACKWELL, branch["branch"]


def test_no_branch_brings_an_older_gpu_back() -> None:
    oldest = [min(low(module) for module in branch["module"]) for branch in BRANCHES]
    assert oldest == sorted(oldest)


@pytest.mark.parametrize("capability", LEGACY, ids=str)
def test_every_legacy_gpu_has_the_proprietary_module_only(capability: Capability) -> None:
    served = branches_for(str(capability))
    assert served
    assert all(text.endswith(" proprietary") for text in served)


@pytest.mark.parametrize(
    ("capability", "last"),
    [
        ("3.0", "470"),
        ("3.5", "470"),
        ("3.7", "470"),
        ("5.0", "580"),
        ("5.2", "580"),
        ("6.0", "580"),
        ("6.1", "580"),
        ("7.0", "580"),
        ("7.5", "610"),
        ("9.0", "610"),
    ],
)
def test_last_branch(capability: str, last: str) -> None:
    assert max(branches_knowing(capability), key=int) == last


def test_only_470_drives_a_k80_beside_a_p40() -> None:
    assert branches_for("3.7", "6.1") == ["470 proprietary"]


def test_p4000_and_gtx_1060_end_with_580() -> None:
    assert branches_for("6.1", "6.1")[-1] == "580 proprietary"
    assert branches_for("6.0", "6.1")[-1] == "580 proprietary"  # P100 and P40


def test_v100_and_h100_share_580_proprietary() -> None:
    assert branches_for("7.0", "9.0")[-1] == "580 proprietary"
    assert not [text for text in branches_for("7.0", "9.0") if text.endswith("open")]


def test_no_branch_knows_both_k80_and_rtx_5090() -> None:
    assert branches_knowing("3.7") & branches_knowing("12.0") == set()
    assert branches_for("3.7", "12.0") == []


def test_580_knows_p40_and_rtx_5090_but_no_module_drives_both() -> None:
    assert "580" in branches_knowing("6.1") & branches_knowing("12.0")
    assert branches_for("6.1", "12.0") == []


@pytest.mark.parametrize(
    "pair", list(combinations(CAPABILITIES, 2)), ids=lambda p: f"{p[0]}+{p[1]}"
)
def test_no_legacy_gpu_shares_a_module_with_blackwell(pair: tuple[Capability, Capability]) -> None:
    shared = branches_for(str(pair[0]), str(pair[1]))
    if pair[0] < TURING and pair[1] >= BLACKWELL:
        assert shared == []
    # Whatever drives two GPUs drives each of them alone.
    for one in pair:
        assert set(shared) <= set(branches_for(str(one)))


def test_kernels_that_the_legacy_branches_stop_at() -> None:
    rows = {branch["branch"]: branch for branch in BRANCHES}
    assert rows["470"]["kernel_below"] == "7.0"
    assert "kernel_fixed_by" not in rows["470"]
    assert rows["580"]["kernel_below"] == "7.1"
    assert rows["580"]["kernel_fixed_by"] == "580.173.02"


def test_lifecycle_of_the_branches_that_matter() -> None:
    rows = {branch["branch"]: branch for branch in BRANCHES}
    assert rows["470"]["support"].startswith("unmaintained")
    assert rows["535"]["end_of_life"] == "2026-06"
    assert rows["580"]["end_of_life"].startswith("2028")
    assert rows["470"]["nixos_attribute"] == "legacy_470"
    assert rows["580"]["nixos_attribute"] == "legacy_580"


# --- toolkits ------------------------------------------------------------------------------------


def test_toolkits_rise_and_nothing_falls_back() -> None:
    for older, newer in pairwise(TOOLKITS):
        assert version(older["version"]) < version(newer["version"])
        assert low(older) <= low(newer)
        assert high(older) <= high(newer)
        assert older["gcc_max"] <= newer["gcc_max"]
        assert older["clang_max"] <= newer["clang_max"]
        for key in ("ptx_isa", "driver_min", "driver_shipped"):
            assert version(older[key]) <= version(newer[key]), (key, newer["version"])
        # Absent means no limit: once lifted it does not come back.
        if "glibc_below" not in older:
            assert "glibc_below" not in newer
        elif "glibc_below" in newer:
            assert version(older["glibc_below"]) <= version(newer["glibc_below"])


def test_ptx_isa_rises_with_every_toolkit_but_12_6() -> None:
    steps = pairwise(TOOLKITS)
    repeated = [new["version"] for old, new in steps if old["ptx_isa"] == new["ptx_isa"]]
    assert repeated == ["12.6"]


@pytest.mark.parametrize(
    ("major", "driver"),
    [("10", "440.33"), ("11", "450.80.02"), ("12", "525.60.13"), ("13", "580.65.06")],
)
def test_one_driver_minimum_for_a_cuda_major(major: str, driver: str) -> None:
    found = {t["driver_min"] for t in TOOLKITS if t["version"].split(".")[0] == major}
    assert found == {driver}


def test_shipped_driver_satisfies_the_minimum_except_for_11_0() -> None:
    below = [
        t["version"] for t in TOOLKITS if version(t["driver_shipped"]) < version(t["driver_min"])
    ]
    assert below == ["11.0"]


@pytest.mark.parametrize(
    ("capability", "newest"),
    [
        ("3.0", "10.2"),
        ("3.5", "11.8"),
        ("3.7", "11.8"),
        ("5.0", "12.9"),
        ("5.2", "12.9"),
        ("6.0", "12.9"),
        ("6.1", "12.9"),
        ("7.0", "12.9"),
    ],
)
def test_newest_toolkit_for(capability: str, newest: str) -> None:
    assert toolkits_for(capability)[-1] == newest


def test_one_build_for_kepler_and_pascal_ends_with_11_8_and_cuda_13_has_neither() -> None:
    assert toolkits_for("3.7", "6.1")[-1] == "11.8"
    assert toolkits_for("3.7", "12.0") == []
    assert toolkits_for("6.1", "12.0") == ["12.8", "12.9"]
    assert all(low(t) == TURING for t in TOOLKITS if t["version"].startswith("13."))


def test_what_a_470_driver_runs() -> None:
    driver = next(b for b in BRANCHES if b["branch"] == "470")
    runs = [t for t in TOOLKITS if version(t["driver_min"]) <= version(driver["latest"])]
    assert runs[-1]["version"] == "11.8"
    compiled_at_run_time = [t for t in runs if version(t["ptx_isa"]) <= version(driver["ptx_isa"])]
    assert compiled_at_run_time[-1]["version"] == "11.4"


def test_what_a_535_driver_runs() -> None:
    driver = next(b for b in BRANCHES if b["branch"] == "535")
    runs = [t for t in TOOLKITS if version(t["driver_min"]) <= version(driver["latest"])]
    assert runs[-1]["version"] == "12.9"
    compiled_at_run_time = [t for t in runs if version(t["ptx_isa"]) <= version(driver["ptx_isa"])]
    assert compiled_at_run_time[-1]["version"] == "12.2"


def test_580_runs_and_compiles_every_toolkit_that_targets_a_legacy_gpu() -> None:
    driver = next(b for b in BRANCHES if b["branch"] == "580")
    for toolkit in TOOLKITS:
        if low(toolkit) < TURING:
            assert version(toolkit["driver_min"]) <= version(driver["latest"])
            assert version(toolkit["ptx_isa"]) <= version(driver["ptx_isa"])


@pytest.mark.parametrize(
    ("toolkit", "gcc"),
    [
        ("10.2", 8),
        ("11.0", 9),
        ("11.4", 10),
        ("11.5", 10),
        ("11.6", 11),
        ("11.8", 11),
        ("12.0", 12),
        ("12.3", 12),
        ("12.4", 13),
        ("12.6", 13),
        ("12.8", 14),
        ("12.9", 14),
    ],
)
def test_gcc_ceiling(toolkit: str, gcc: int) -> None:
    (row,) = [t for t in TOOLKITS if t["version"] == toolkit]
    assert row["gcc_max"] == gcc


def test_glibc_limit() -> None:
    limits = {t["version"]: t.get("glibc_below") for t in TOOLKITS}
    assert {v for k, v in limits.items() if version(k) < (13, 0)} == {"2.41"}
    assert limits["13.0"] == limits["13.1"] == "2.42"
    assert limits["13.2"] is None


# --- cuDNN ---------------------------------------------------------------------------------------


def test_cudnn_ranges_cover_each_capability_from_3_5_once() -> None:
    for capability in CAPABILITIES:
        found = [row for row in CUDNN if low(row) <= capability <= high(row)]
        assert len(found) == (1 if capability >= Capability(3, 5) else 0), str(capability)


def test_cudnn_versions_are_ordered() -> None:
    for row in CUDNN:
        if "last" in row:
            assert version(row["first"]) < version(row["last"]) < version(row["dropped_in"])
    ends = [version(row["dropped_in"]) for row in CUDNN if "dropped_in" in row]
    assert ends == sorted(ends)
    assert [row["capability_min"] for row in CUDNN if "last" not in row] == ["7.5"]


@pytest.mark.parametrize(
    ("capability", "release", "serves"),
    [
        ("3.7", "8.5.0.96", True),
        ("3.7", "8.7.0.84", True),
        ("3.7", "8.8.0.121", False),
        ("5.2", "9.5.1.17", True),
        ("6.0", "9.10.2.21", True),
        ("6.1", "9.11.0.98", False),
        ("7.0", "9.10.2.21", True),
        ("7.0", "9.14.0.64", False),
    ],
)
def test_cudnn_release_serves(capability: str, release: str, serves: bool) -> None:
    (row,) = [row for row in CUDNN if holds(row, capability)]
    assert (version(release) < version(row["dropped_in"])) is serves


# --- engines -------------------------------------------------------------------------------------


def test_engine_names_and_aliases_are_unique() -> None:
    names = [name for e in load("engines")["engine"] for name in (e["name"], *e["aliases"])]
    assert len(set(names)) == len(names)
    assert {"torch", "llama-cpp", "ollama", "vllm"} < set(names)
    assert {"sglang", "tensorrt-llm", "tgi", "exllamav2"} < set(names)


@pytest.mark.parametrize("engine", ENGINES)
def test_rules_cover_every_capability_once_and_in_order(engine: str) -> None:
    rules = ENGINES[engine]["rule"]
    for capability in CAPABILITIES:
        assert len(rules_for(engine, str(capability))) == 1, f"{engine} {capability}"
    assert low(rules[0]) == CAPABILITIES[0]
    assert high(rules[-1]) == CAPABILITIES[-1]
    for older, newer in pairwise(rules):
        assert high(older) < low(newer)


@pytest.mark.parametrize("engine", ENGINES)
def test_something_named_instead_is_not_refused_itself(engine: str) -> None:
    for rule in ENGINES[engine]["rule"]:
        names = [entry for entry in rule["instead"] if " " not in entry]
        assert set(names) <= set(ENGINES) - {engine}
        for capability in CAPABILITIES:
            if names == rule["instead"] != [] and low(rule) <= capability <= high(rule):
                answers = {name: verdict(name, str(capability)) for name in names}
                assert set(answers.values()) != {"refused"}, f"{engine} at {capability}: {answers}"


@pytest.mark.parametrize("engine", ENGINES)
def test_refusals_explain_themselves(engine: str) -> None:
    for rule in ENGINES[engine]["rule"]:
        assert rule["reason"].endswith((".", ")"))
        if rule["verdict"] == "refused":
            assert len(rule["reason"]) > 40
            assert rule["instead"]


def test_what_is_offered_has_a_stack_and_nothing_is_offered_below_3_7_or_from_10_0() -> None:
    offered = {
        (engine, str(capability))
        for engine in ENGINES
        for capability in CAPABILITIES
        if verdict(engine, str(capability)) == "offered"
    }
    assert {engine for engine, _ in offered} == {stack.engine for stack in catalog.stacks()}
    for stack in catalog.stacks():
        assert {(stack.engine, str(capability)) for capability in stack.home} <= offered
    wanted = {str(c) for c in CAPABILITIES if Capability(3, 7) <= c <= Capability(9, 0)}
    assert {capability for _, capability in offered} == wanted


@pytest.mark.parametrize(
    ("engine", "capability", "answer"),
    [
        ("torch", "3.5", "refused"),  # torch 2.0.1 has sm_37 and no PTX
        ("torch", "3.7", "offered"),
        ("torch", "5.2", "offered"),
        ("torch", "6.1", "offered"),
        ("torch", "7.0", "offered"),
        ("torch", "12.0", "not-packaged"),
        ("llama-cpp", "3.5", "not-packaged"),
        ("llama-cpp", "3.7", "offered"),
        ("llama-cpp", "5.0", "not-packaged"),
        ("llama-cpp", "6.1", "offered"),
        ("llama-cpp", "7.5", "not-packaged"),
        ("ollama", "3.7", "refused"),
        ("ollama", "5.2", "not-packaged"),
        ("vllm", "3.7", "refused"),
        ("vllm", "5.2", "refused"),
        ("vllm", "6.0", "offered"),
        ("vllm", "6.1", "offered"),
        ("vllm", "7.0", "not-packaged"),
        ("sglang", "6.1", "refused"),
        ("sglang", "7.0", "refused"),
        ("sglang", "7.5", "not-packaged"),
        ("tensorrt-llm", "7.5", "refused"),
        ("tensorrt-llm", "8.0", "not-packaged"),
        ("tgi", "7.0", "refused"),
        ("exllamav2", "6.0", "not-packaged"),
        ("exllamav2", "6.1", "refused"),
    ],
)
def test_verdict(engine: str, capability: str, answer: str) -> None:
    assert verdict(engine, capability) == answer


def test_reasons_quote_the_evidence() -> None:
    (sglang,) = rules_for("sglang", "7.0")
    assert "SGLang only supports sm75 and above" in sglang["reason"]
    (vllm,) = rules_for("vllm", "7.0")
    assert "0.19.1" in vllm["reason"]
    (ollama,) = rules_for("ollama", "6.1")
    assert "570" in ollama["reason"]
    (exllama,) = rules_for("exllamav2", "6.1")
    assert "1/64" in exllama["reason"]


@pytest.mark.parametrize("capability", [c for c in LEGACY if c != Capability(3, 5)], ids=str)
def test_every_legacy_gpu_but_the_k40_is_offered_something(capability: Capability) -> None:
    assert "offered" in {verdict(engine, str(capability)) for engine in ENGINES}
