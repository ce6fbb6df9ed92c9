"""The services that ``legacy-cuda monitor --systemd`` prints, as systemd reads and judges them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import legacy_cuda
from legacy_cuda.cli import main

PRINTED = {
    "exporter": ["--engine", "ollama=http://127.0.0.1:11434", "--power-cap", "p40=180"],
    "power-cap": ["--power-cap", "p40=180", "--power-cap", "p4=60"],
    "thermal-guard": ["--gpu", "p40,p4", "--power-cap", "p40=180"],
    "resume": ["--unit", "ollama.service", "--unit", "llama.service"],
}


def printed(capsys: pytest.CaptureFixture[str], kind: str, *arguments: str) -> tuple[str, str]:
    assert main(["monitor", "--systemd", kind, *arguments]) == 0
    found = capsys.readouterr()
    return found.out, found.err


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="skipped: no systemd-analyze")
@pytest.mark.parametrize("kind", PRINTED)
def test_units_are_sound_and_hardened(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"legacy-cuda-{kind}.service"
    path.write_text(printed(capsys, kind, *PRINTED[kind])[0])
    for arguments in (["verify"], ["security", "--offline=true", "--threshold=30"]):
        done = subprocess.run(
            ["systemd-analyze", "--no-pager", *arguments, str(path)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-400:] + done.stderr
        assert not done.stderr


def command(text: str) -> str:
    (line,) = re.findall(r"^ExecStart=:(.*)$", text, re.M)
    return str(line)


def test_what_the_scripts_are_given(capsys: pytest.CaptureFixture[str]) -> None:
    text, said = printed(capsys, "power-cap", *PRINTED["power-cap"])
    assert command(text).endswith("power-limits.sh /usr/bin/nvidia-smi 10de:1b38=180 10de:1bb3=60")
    assert "/etc/systemd/system/legacy-cuda-power-cap.service" in said
    text, _ = printed(capsys, "thermal-guard", *PRINTED["thermal-guard"])
    assert command(text).endswith(" 10de:1b38=85,180 10de:1bb3=85")
    text, _ = printed(capsys, "resume", *PRINTED["resume"])
    assert command(text).endswith("resume.sh ollama.service llama.service")
    for text in (printed(capsys, kind, *PRINTED[kind])[0] for kind in PRINTED):
        (script,) = re.findall(r"^BindReadOnlyPaths=(\S+\.sh)$", text, re.M) or ["-"]
        assert script == "-" or (Path(script).is_file() and script in command(text))


def test_the_exporter_sees_its_package_and_the_names_of_processes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text, _ = printed(capsys, "exporter")
    bound = [Path(path) for path in re.findall(r"^BindReadOnlyPaths=(.*)$", text, re.M)]
    package = Path(legacy_cuda.__file__)
    assert any(package.is_relative_to(path) for path in bound)
    assert "\nProtectProc=default\n" in text


def test_a_k80_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    text, said = printed(capsys, "thermal-guard", "--gpu", "p40,k80")
    assert "10de:1b38" in text and "10de:102d" not in text and "k80 is left out" in said
    for kind, arguments in (
        ("power-cap", ["--power-cap", "k80=100"]),
        ("thermal-guard", ["--gpu", "k80,k40"]),
    ):
        assert main(["monitor", "--systemd", kind, *arguments]) == 2
        found = capsys.readouterr()
        assert not found.out and "halt" in found.err and "--anyway" in found.err
    text, said = printed(capsys, "power-cap", "--power-cap", "k80=100", "--anyway")
    assert "10de:102d=100" in text and "k80 gets a limit" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["power-cap"], "which cards"),
        (["power-cap", "--power-cap", "180"], "which cards"),
        (["power-cap", "--power-cap", "p40=400"], "made for 250 W"),
    ],
)
def test_what_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["monitor", "--systemd", *arguments]) == 2
    assert said in capsys.readouterr().err
