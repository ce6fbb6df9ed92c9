"""Which code runs on which capability."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legacy_cuda.capability import INTEGRATED, Capability, Target

NUMBERS = "30 32 35 37 50 52 53 60 61 62 70 72 75 80 86 87 89 90 100 101 103 110 120 121"
KNOWN = [Capability.from_number(int(number)) for number in NUMBERS.split()]
capabilities = st.sampled_from(KNOWN)
targets = st.builds(
    Target, st.sampled_from(["sass", "ptx"]), capabilities, st.sampled_from(["", "a", "f"])
)


def runs(target: str, capability: str) -> bool:
    return Target.parse(target).runs_on(Capability.parse(capability))


@pytest.mark.parametrize(
    ("target", "capability"),
    [
        ("sm_60", "6.1"),
        ("sm_50", "5.2"),
        ("sm_35", "3.7"),
        ("sm_61", "6.1"),
        ("sm_70", "7.5"),
        ("sm_80", "8.9"),
        ("compute_35", "3.5"),
        ("compute_52", "6.1"),
        ("compute_30", "12.0"),
        ("compute_60", "6.2"),
        ("compute_53", "6.1"),
        ("sm_72", "7.2"),
        ("sm_90a", "9.0"),
        ("compute_90a", "9.0"),
        ("sm_100f", "10.3"),
        ("compute_100f", "10.3"),
    ],
)
def test_runs(target: str, capability: str) -> None:
    assert runs(target, capability)


@pytest.mark.parametrize(
    ("target", "capability"),
    [
        ("sm_61", "6.0"),
        ("sm_52", "5.0"),
        ("sm_37", "3.5"),
        ("sm_52", "6.1"),
        ("sm_60", "7.0"),
        ("sm_70", "6.1"),
        ("compute_61", "6.0"),
        ("compute_70", "6.1"),
        ("compute_80", "7.5"),
        ("sm_60", "6.2"),
        ("sm_62", "6.1"),
        ("sm_53", "5.2"),
        ("sm_70", "7.2"),
        ("sm_72", "7.5"),
        ("sm_80", "8.7"),
        ("sm_90a", "10.0"),
        ("compute_90a", "10.0"),
        ("sm_100a", "10.3"),
        ("sm_100f", "12.0"),
        ("compute_100f", "12.0"),
        ("sm_103f", "10.0"),
        ("sm_100f", "10.1"),
    ],
)
def test_does_not_run(target: str, capability: str) -> None:
    assert not runs(target, capability)


@given(capabilities)
def test_capability_text_and_number_round_trip(capability: Capability) -> None:
    assert Capability.parse(str(capability)) == capability
    assert Capability.from_number(capability.number) == capability


@given(targets)
def test_target_text_round_trips(target: Target) -> None:
    assert Target.parse(str(target)) == target


@given(targets)
def test_code_runs_on_what_it_was_made_for(target: Target) -> None:
    assert target.runs_on(target.capability)


@given(targets, capabilities)
def test_nothing_runs_on_an_older_device(target: Target, device: Capability) -> None:
    if device < target.capability:
        assert not target.runs_on(device)


@given(capabilities, capabilities)
def test_sass_never_crosses_major_versions(own: Capability, device: Capability) -> None:
    for variant in ("", "a", "f"):
        if own.major != device.major:
            assert not Target("sass", own, variant).runs_on(device)


@given(capabilities, capabilities)
def test_ptx_runs_wherever_sass_of_the_same_capability_does(
    own: Capability, device: Capability
) -> None:
    if Target("sass", own).runs_on(device):
        assert Target("ptx", own).runs_on(device)


@given(targets, capabilities)
def test_a_variant_never_runs_on_more_than_the_plain_target(
    target: Target, device: Capability
) -> None:
    if target.runs_on(device):
        assert Target(target.kind, target.capability).runs_on(device)


@given(st.lists(targets, max_size=6), targets)
def test_more_code_never_covers_less(code: list[Target], more: Target) -> None:
    def covered(targets: list[Target]) -> set[Capability]:
        return {device for device in KNOWN if any(target.runs_on(device) for target in targets)}

    assert covered(code) <= covered([*code, more])


@given(capabilities, capabilities, capabilities)
def test_older_ptx_covers_more(older: Capability, newer: Capability, device: Capability) -> None:
    older, newer = sorted((older, newer))
    if Target("ptx", newer).runs_on(device):
        assert Target("ptx", older).runs_on(device)


@given(capabilities, capabilities)
def test_integrated_and_discrete_gpus_exchange_no_sass(own: Capability, device: Capability) -> None:
    if (own in INTEGRATED) != (device in INTEGRATED):
        assert not Target("sass", own).runs_on(device)


@pytest.mark.parametrize("text", ["", "6", "61", "6.", ".1", "6.1.0", "6.10", "-6.1", "six", "6,1"])
def test_refuses_what_is_no_capability(text: str) -> None:
    with pytest.raises(ValueError, match="not a compute capability"):
        Capability.parse(text)


@pytest.mark.parametrize(
    "text", ["", "sm61", "sm_6", "sm_61b", "SM_61", "sm_61 ", "compute_", "lto_80"]
)
def test_refuses_what_is_no_target(text: str) -> None:
    with pytest.raises(ValueError, match="not a target"):
        Target.parse(text)


@given(st.text(max_size=8))
def test_parsing_text_raises_nothing_but_value_error(text: str) -> None:
    for parse in (Capability.parse, Target.parse):
        try:
            value = parse(text)
        except ValueError:
            continue
        assert parse(str(value)) == value
