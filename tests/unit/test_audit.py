"""Verdicts: the rules on made-up libraries, and the traps on the catalog's evidence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legacy_cuda import audit, catalog, evidence
from legacy_cuda.audit import Group, Library, judge, judge_library
from legacy_cuda.capability import Capability

K80, M40, P100, P40, V100 = (
    Capability(3, 7),
    Capability(5, 2),
    Capability(6, 0),
    Capability(6, 1),
    Capability(7, 0),
)


def library(
    *groups: tuple[int, str], path: str = "pkg/lib.so", linkage: audit.Linkage = "loadable"
) -> Library:
    made = tuple(Group(count, linkage, tuple(code.split())) for count, code in groups)
    return Library(path, 1, "shared", made)


def of(package: str, version: str) -> tuple[Library, ...]:
    found = [item for item in evidence.known(package) if item.version == version]
    assert found, f"the catalog has no evidence on {package} {version}"
    return found[0].libraries


def outcome(package: str, version: str, capability: Capability) -> str:
    return judge(of(package, version), capability).outcome


def test_lower_minor_serves_and_other_majors_do_not() -> None:
    only = [library((4, "sm_60"))]
    assert judge(only, P40).outcome == "runs"
    assert judge(only, V100).outcome == "does-not-run"
    assert judge(only, M40).outcome == "does-not-run"


def test_ptx_needs_a_driver_that_compiles_it() -> None:
    verdict = judge([library((4, "compute_60@8.4"))], P40)
    assert verdict.outcome == "runs-through-jit"
    assert verdict.driver is not None
    branch = next(item for item in catalog.branches() if item.branch == verdict.driver)
    assert branch.ptx_isa >= (8, 4)


def test_ptx_newer_than_the_last_driver_of_a_gpu_is_worth_nothing() -> None:
    ours = [library((4, "compute_35@7.8"))]  # CUDA 11.8; the K80's last driver compiles 7.4
    assert judge(ours, K80).outcome == "does-not-run"
    assert judge([library((4, "compute_35@7.4"))], K80).outcome == "runs-through-jit"


def test_stubs_and_link_time_code_do_not_count() -> None:
    kinds: tuple[audit.Linkage, ...] = ("stub", "link-time")
    for linkage in kinds:
        hidden = library((9, "sm_61"), linkage=linkage)
        assert judge([hidden], P40).outcome == "no-device-code"
        other = library((9, "sm_70"), path="pkg/b.so")
        assert judge([hidden, other], P40).outcome == "does-not-run"


def test_a_union_over_the_file_is_never_taken() -> None:
    mixed = library((1, "sm_61"), (200, "sm_70 sm_80"))
    assert judge_library(mixed, P40).state == "stray"
    assert judge([mixed], P40).outcome == "does-not-run"


def test_a_part_of_the_kernels_is_a_limit() -> None:
    verdict = judge([library((30, "sm_61"), (70, "sm_80"))], P40)
    assert verdict.outcome == "runs-with-limits"
    assert verdict.lost == ("70 of 100 kernel groups in lib.so, made for other GPUs only",)


def test_of_alternatives_one_is_enough_and_the_one_for_torch_decides() -> None:
    folder = "lib/python3.11/site-packages/bitsandbytes"
    libraries = [
        library((1, "sm_60"), path=f"{folder}/libbitsandbytes_cuda126.so"),
        library((1, "sm_75"), path=f"{folder}/libbitsandbytes_cuda130.so"),
    ]
    assert judge(libraries, P40).outcome == "runs-with-limits"
    assert judge(libraries, P40, (12, 6)).outcome == "runs"
    assert judge(libraries, P40, (13, 0)).outcome == "does-not-run"


@pytest.mark.parametrize(
    ("package", "last", "next_version", "capability"),
    [
        ("torch", "2.0.1", "2.1.0", K80),
        ("torch", "2.7.1", "2.8.0", M40),
        ("torch", "2.7.1", "2.8.0", P100),
        ("torch", "2.7.1", "2.8.0", P40),
        ("torch", "2.10.0", "2.11.0", V100),
        ("bitsandbytes", "0.47.0", "0.50.2", M40),
    ],
)
def test_the_last_version_that_runs(
    package: str, last: str, next_version: str, capability: Capability
) -> None:
    assert judge(of(package, last), capability).good
    assert outcome(package, next_version, capability) == "does-not-run"
    assert evidence.newest_that_runs(package, capability) == last


def test_trap_torch_2_8_lists_pascal_in_one_library_only() -> None:
    verdict = judge(of("torch", "2.8.0"), P40)
    states = {item.path.rpartition("/")[2]: item.state for item in verdict.libraries}
    assert states["libtorch_cuda_linalg.so"] == "serves"
    assert states["libtorch_cuda.so"] == "none"
    assert verdict.missing == ("torch/lib/libtorch_cuda.so",)


def test_trap_cudnn_9_28_lists_pascal_in_engines_precompiled_only() -> None:
    verdict = judge(of("nvidia-cudnn-cu12", "9.28.0.42"), P40)
    serving = {item.path.rpartition("/")[2] for item in verdict.libraries if item.serving}
    assert serving == {"libcudnn_engines_precompiled.so.9"}
    assert verdict.outcome == "does-not-run"


@pytest.mark.parametrize("version", ["0.14.0", "0.19.1"])
def test_trap_vllm_has_a_stray_container_without_a_kernel(version: str) -> None:
    (main,) = (item for item in of("vllm", version) if item.path == "vllm/_C.abi3.so")
    stray = [group for group in main.groups if "sm_52" in group.code]
    assert [(group.count, group.linkage) for group in stray] == [(1, "stub")]
    assert outcome("vllm", version, M40) == "does-not-run"
    assert outcome("vllm", version, P40) == "does-not-run"
    assert outcome("vllm", version, V100) == "runs-with-limits"


def test_trap_cusparselt_is_a_feature() -> None:
    name = "nvidia-cusparselt-cu12"
    verdict = judge([*of("torch", "2.7.1"), *of(name, "0.6.3")], P40)
    assert verdict.outcome == "runs-with-limits"
    assert verdict.lost == ("2:4 structured sparsity (cuSPARSELt)",)


def test_trap_no_torch_wheel_runs_on_a_k40() -> None:
    assert outcome("torch", "2.0.1", Capability(3, 5)) == "does-not-run"
    assert evidence.newest_that_runs("torch", Capability(3, 5)) is None


def test_trap_cublaslt_needs_only_its_own_share() -> None:
    verdict = judge(of("nvidia-cublas-cu12", "12.6.4.1"), P40)
    (lt,) = (item for item in verdict.libraries if "cublasLt" in item.path)
    assert lt.state == "partial"
    assert lt.serving * 10 < lt.containers
    assert verdict.good


def test_a_share_below_the_bound_serves_nothing_whatever_the_count() -> None:
    core = library((99, "sm_61"), (901, "sm_80"))
    assert judge_library(core, P40).state == "stray"
    assert judge_library(library((100, "sm_61"), (900, "sm_80")), P40).state == "partial"
    lt = "nvidia/cublas/lib/libcublasLt.so.12"
    for count, state in ((19, "stray"), (20, "partial")):
        picks = library((count, "sm_61"), (1000 - count, "sm_80"), path=lt)
        assert judge_library(picks, P40).state == state


def test_vllm_for_volta_is_above_the_bound() -> None:
    (moe,) = (item for item in of("vllm", "0.14.0") if item.path == "vllm/_moe_C.abi3.so")
    verdict = judge_library(moe, V100)
    assert (verdict.serving, verdict.containers, verdict.state) == (6, 33, "partial")


def test_a_part_of_a_feature_or_an_alternative_is_a_loss() -> None:
    flash = library((3, "sm_60"), (1, "sm_80"), path="xformers/_C_flashattention.so")
    (lost,) = judge([flash], P40).lost
    assert lost.startswith("part of FlashAttention 2: 1 of 4 kernel groups in _C_flashattention")
    path = "bitsandbytes/libbitsandbytes_cuda126.so"
    verdict = judge([library((3, "sm_60"), (1, "sm_80"), path=path)], P40, (12, 6))
    assert verdict.lost == (
        "1 of 4 kernel groups in libbitsandbytes_cuda126.so, made for other GPUs only",
    )
    picks = library((3, "sm_60"), (1, "sm_80"), path="cusparselt/lib/libcusparseLt.so.0")
    assert judge([picks], P40).outcome == "runs"


def test_the_driver_for_what_is_used() -> None:
    feature = library((1, "compute_61@8.5"), path="nvidia/cufile/lib/libcufile.so.0")
    verdict = judge([feature], P40)
    assert (verdict.outcome, verdict.driver) == ("runs-through-jit", "570")
    plain = library((1, "sm_61"), path="bitsandbytes/libbitsandbytes_cuda126.so")
    jit = library((1, "compute_61@8.7"), path="bitsandbytes/libbitsandbytes_cuda128.so")
    assert judge([plain, jit], P40, (12, 6)).driver is None
    assert judge([plain, jit], P40, (12, 8)).driver == "570"
    assert judge([plain, jit], P40).driver is None


def test_a_left_over_of_ptx_does_not_decide_the_driver() -> None:
    path = "nvidia/cublas/lib/libcublasLt.so.12"
    few = library((99, "sm_61"), (1, "compute_61@8.7"), path=path)
    assert judge([few], P40).driver is None
    some = library((90, "sm_61"), (10, "compute_61@8.7"), path=path)
    assert judge([some], P40).driver == "570"
    every_kernel_counts = library((99, "sm_61"), (1, "compute_61@8.7"))
    assert judge([every_kernel_counts], P40).driver == "570"


def test_alternatives_without_one_for_torch() -> None:
    for_cuda = {
        text: library((1, "sm_60"), path=f"x/site-packages/bitsandbytes/libbitsandbytes_{text}.so")
        for text in ("cuda121", "cuda126", "cuda128")
    }
    verdict = judge(for_cuda.values(), P40, (13, 0))
    assert verdict.outcome == "does-not-run"
    assert audit.describe(verdict) == (
        "does not run: bitsandbytes has no library for CUDA 13.0, which PyTorch uses here"
    )
    for torch, instead in (((12, 9), "cuda128"), ((12, 4), "cuda121"), ((12, 0), "cuda121")):
        verdict = judge(for_cuda.values(), P40, torch)
        assert verdict.outcome == "runs-with-limits"
        assert f"for CUDA {torch[0]}.{torch[1]} " in verdict.lost[0]
        assert f"libbitsandbytes_{instead}.so" in verdict.lost[0]


@pytest.mark.parametrize(
    ("path", "role"),
    [
        ("/usr/local/cuda/lib64/libcublasLt.so.12", "dispatching"),
        ("/usr/lib/x86_64-linux-gnu/libcudnn_ops.so.9", "dispatching"),
        ("/usr/local/cuda/extras/CUPTI/lib64/libcupti.so.12", "feature"),
        ("/v/lib/python3.11/site-packages/torch/bin/x", "tool"),
        ("/usr/lib/python3/dist-packages/vllm/_flashmla_C.abi3.so", "feature"),
        ("vllm-1.0.data/purelib/vllm/_flashmla_C.abi3.so", "feature"),
        ("vllm-1.0.data/platlib/vllm/_C.abi3.so", "core"),
        ("a/site-packages/b/site-packages/vllm/vllm_flash_attn/x.so", "feature"),
        ("torch/lib/libcublas.so.11", "dispatching"),
        ("nvidia/cu13/lib/libcufile.so.0", "feature"),
        ("nvidia/cu13/lib/libcupti.so.13", "feature"),
        ("nvidia/cu13/lib/libcheckpoint.so", "feature"),
        ("nvidia/cu13/lib/libcublasLt.so.13", "dispatching"),
        ("nvidia/cu13/lib/libcusparse.so.12", "dispatching"),
        ("nvidia/cu13/lib/libsomething.so.1", "core"),
        ("nvidia/cuda_cupti/lib/libcupti.so.12", "feature"),
        ("triton/backends/nvidia/lib/cupti/libcupti.so", "tool"),
        ("/opt/x/libmine.so", "core"),
    ],
)
def test_roles_by_path(path: str, role: str) -> None:
    assert audit.rule_for(path).role == role


def test_what_is_there_without_being_loadable_is_said() -> None:
    def said(*libraries: Library) -> str:
        verdict = judge(libraries, P40)
        assert verdict.outcome == "no-device-code"
        return audit.describe(verdict)

    linker = library((2, "sm_61"), linkage="link-time")
    assert said(linker) == ("holds only code for a device linker: nothing a GPU runs as it is")
    assert "without a kernel" in said(library((2, "sm_61"), linkage="stub"))
    assert "link-time optimisation" in said(library((2, "lto_61")))
    assert "tools only" in said(library((1, "sm_80"), path="torch/bin/x"))
    assert "no device code" in said()


def test_what_is_gone_and_whose_it_is() -> None:
    runs = judge([library((1, "sm_61"))], P40)
    assert audit.without(runs, ()) is runs
    gone = audit.without(runs, [("torch/lib/libx.so", "torch 2.7.1")])
    assert not gone.good
    assert audit.describe(gone) == (
        "does not run: torch/lib/libx.so (listed in RECORD of torch 2.7.1, not there)"
    )
    bad = judge([library((1, "sm_80"), path="flash_attn_2_cuda.so")], P40)
    assert audit.describe(bad, {"flash_attn_2_cuda.so": "flash-attn 2.7.4"}) == (
        "does not run: flash_attn_2_cuda.so [flash-attn 2.7.4] has code for it in 0 of 1 containers"
    )


CODE = st.sets(
    st.sampled_from(["sm_37", "sm_50", "sm_60", "sm_61", "sm_70", "sm_80", "compute_60@7.4"]),
    min_size=1,
)
GROUPS = st.lists(st.tuples(st.integers(1, 50), CODE), min_size=1, max_size=4)


@given(GROUPS, st.sampled_from([K80, M40, P100, P40, V100]))
def test_more_code_never_makes_a_verdict_worse(
    groups: list[tuple[int, set[str]]], capability: Capability
) -> None:
    before = library(*[(count, " ".join(sorted(code))) for count, code in groups])
    after = library(*[(count, " ".join(sorted(code | {"sm_61"}))) for count, code in groups])
    assert judge_library(after, capability).serving >= judge_library(before, capability).serving
    if judge([before], capability).good:
        assert judge([after], capability).good


@given(GROUPS, st.sampled_from([K80, M40, P100, P40, V100]))
def test_counts_add_up(groups: list[tuple[int, set[str]]], capability: Capability) -> None:
    verdict = judge_library(
        library(*[(count, " ".join(sorted(code))) for count, code in groups]), capability
    )
    assert verdict.containers == sum(count for count, _ in groups)
    assert 0 <= verdict.sass + verdict.jit <= verdict.containers


def test_every_role_needs_its_words() -> None:
    for rule in catalog.audit_rules().libraries:
        assert (rule.role == "feature") == (rule.feature is not None)
        assert (rule.role == "alternative") == (rule.group is not None)


def test_describe_says_what_is_missing_and_what_is_lost() -> None:
    assert audit.describe(judge(of("torch", "2.8.0"), P40)) == (
        "does not run: libtorch_cuda.so has code for it in 0 of 356 containers"
    )
    assert "no device code" in audit.describe(judge([], P40))
