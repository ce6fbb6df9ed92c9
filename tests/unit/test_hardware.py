"""GPUs of a machine, read from sysfs trees like the kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest

from legacy_cuda import catalog, hardware
from legacy_cuda.errors import UserError

VGA, CONTROLLER_3D, AUDIO, BRIDGE = "0x030000", "0x030200", "0x040300", "0x060400"


def device(root: Path, address: str, pci_id: str, kind: str = CONTROLLER_3D) -> None:
    folder = root / address
    folder.mkdir(parents=True)
    vendor, _, number = pci_id.partition(":")
    for name, text in (("vendor", f"0x{vendor}"), ("device", f"0x{number}"), ("class", kind)):
        (folder / name).write_text(f"{text}\n")


def pci(name: str) -> str:
    return catalog.find_gpu(name).pci_ids[0]


def names(root: Path) -> list[str]:
    return [gpu.name for gpu in hardware.detect(root)]


def test_two_p40(tmp_path: Path) -> None:
    device(tmp_path, "0000:3b:00.0", pci("p40"))
    device(tmp_path, "0000:d8:00.0", pci("p40"))
    assert names(tmp_path) == ["p40", "p40"]


@pytest.mark.parametrize(("dies", "cards"), [(1, 1), (2, 1), (4, 2)])
def test_a_k80_is_one_card_of_two_dies(tmp_path: Path, dies: int, cards: int) -> None:
    for number in range(dies):
        device(tmp_path, f"0000:{number + 4:02x}:00.0", pci("k80"))
    assert names(tmp_path) == ["k80"] * cards


def test_two_kinds_in_bus_order(tmp_path: Path) -> None:
    device(tmp_path, "0000:41:00.0", pci("gtx1060-6gb"), VGA)
    device(tmp_path, "0000:41:00.1", "10de:10f1", AUDIO)
    device(tmp_path, "0000:0a:00.0", pci("p4000"), VGA)
    device(tmp_path, "0000:0a:00.1", "10de:10f0", AUDIO)
    assert names(tmp_path) == ["p4000", "gtx1060-6gb"]


def test_what_is_no_nvidia_gpu_is_ignored(tmp_path: Path) -> None:
    device(tmp_path, "0000:00:02.0", "8086:4680", VGA)
    device(tmp_path, "0000:00:1c.0", "10de:1b38", BRIDGE)
    device(tmp_path, "0000:03:00.0", "1002:73bf", VGA)
    (tmp_path / "0000:09:00.0").mkdir()  # gone while it is looked at
    device(tmp_path, "0000:3b:00.0", pci("p40"))
    assert names(tmp_path) == ["p40"]


def test_capital_digits(tmp_path: Path) -> None:
    device(tmp_path, "0000:3b:00.0", pci("p40").upper())
    assert names(tmp_path) == ["p40"]


def test_a_gpu_that_is_not_in_the_catalog(tmp_path: Path) -> None:
    device(tmp_path, "0000:3b:00.0", pci("p40"))
    device(tmp_path, "0000:5e:00.0", "10de:ffff")
    with pytest.raises(UserError, match="10de:ffff") as caught:
        hardware.detect(tmp_path)
    assert "0000:5e:00.0" in caught.value.why
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("kind", ["empty", "missing", "others only"])
def test_none(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "devices"
    if kind != "missing":
        root.mkdir()
    if kind == "others only":
        device(root, "0000:00:02.0", "8086:4680", VGA)
    with pytest.raises(UserError, match="no NVIDIA GPU") as caught:
        hardware.detect(root)
    assert "p40" in caught.value.next_step


@pytest.mark.parametrize("gpu", catalog.gpus(), ids=lambda gpu: gpu.name)
def test_every_pci_id_of_the_catalog_leads_to_its_card(tmp_path: Path, gpu: catalog.Gpu) -> None:
    """Or to the first of the cards that share it: PCI does not tell an M40 from one of 24 GB."""
    for number, pci_id in enumerate(gpu.pci_ids):
        root = tmp_path / str(number)
        device(root, "0000:3b:00.0", pci_id)
        sharing = [other for other in catalog.gpus() if pci_id in other.pci_ids]
        assert names(root) == [sharing[0].name]
        assert {other.capability for other in sharing} == {gpu.capability}
