"""The services that ``legacy-cuda monitor --systemd`` prints, as systemd reads and judges them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import legacy_cuda
from legacy_cuda.cli import main
from legacy_cuda.monitor import units

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


def command(text: str) -> list[str]:
    """The words of a command, as systemd.syntax(7) and systemd.service(5) have them."""
    joined = re.sub(r"\\\n\s*", " ", text)
    (line,) = re.findall(r"^ExecStart=:(.*)$", joined, re.M)
    signs = {"n": "\n", '"': '"', "\\": "\\"}
    words = re.findall(r'"(?:[^"\\]|\\.)*"|[^\s"]+', line)
    plain = (word[1:-1] if word[0] == '"' else word for word in words)
    return [re.sub(r"\\(.)", lambda m: signs[m[1]], word).replace("%%", "%") for word in plain]


def test_what_the_scripts_are_given(capsys: pytest.CaptureFixture[str]) -> None:
    text, said = printed(capsys, "power-cap", *PRINTED["power-cap"])
    assert command(text)[-4:] == [
        "power-limits", "/usr/bin/nvidia-smi", "10de:1b38=180", "10de:1bb3=60"
    ]  # fmt: skip
    assert "/etc/systemd/system/legacy-cuda-power-cap.service" in said
    text, _ = printed(capsys, "thermal-guard", *PRINTED["thermal-guard"])
    assert command(text)[-2:] == ["10de:1b38=85,180", "10de:1bb3=85"]
    text, _ = printed(capsys, "resume", *PRINTED["resume"])
    assert command(text)[-3:] == ["resume", "ollama.service", "llama.service"]


@pytest.mark.parametrize("kind", ["power-cap", "thermal-guard", "resume"])
def test_what_root_runs_is_in_the_unit(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    text, _ = printed(capsys, kind, *PRINTED[kind])
    assert "BindReadOnlyPaths" not in text and str(units.SCRIPTS) not in text
    words = command(text)
    name = {"power-cap": "power-limits"}.get(kind, kind)
    script = (units.SCRIPTS / f"{name}.sh").read_text().splitlines()
    code = [line.strip() for line in script if not line.strip().startswith("#")]
    # a line that goes on has a space more
    assert [line.strip() for line in words[words.index("-c") + 1].splitlines() if line.strip()] == [
        line for line in code if line
    ]
    subprocess.run(["bash", "-n", "-c", words[words.index("-c") + 1]], check=True)


def test_limits_want_persistence(capsys: pytest.CaptureFixture[str]) -> None:
    text, _ = printed(capsys, "power-cap", *PRINTED["power-cap"])
    assert "\nWants=nvidia-persistenced.service\n" in text.split("[Service]")[0]


def test_the_command_sets_limits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        '#!/bin/sh\ncase "$*" in\n'
        f"  *power-limit=*) echo $* >> {tmp_path}/calls ;;\n"
        "  *) echo '0, 0x1B3810DE, Enabled' ;;\nesac\n"
    )
    smi.chmod(0o755)
    words = command(printed(capsys, "power-cap", *PRINTED["power-cap"])[0])
    words[words.index(units.SMI)] = str(smi)
    subprocess.run(words, check=True, timeout=20)
    assert (tmp_path / "calls").read_text() == "--id=0 --power-limit=180\n"


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
    for kind, cap in (
        ("power-cap", "p40=251"),
        ("thermal-guard", "p4=76"),
        ("power-cap", "m60=151"),
    ):
        assert main(["monitor", "--systemd", kind, "--gpu", "p40", "--power-cap", cap]) == 2
        assert "too much" in capsys.readouterr().err
    assert printed(capsys, "power-cap", "--power-cap", "m60=150")[0]
    text, said = printed(capsys, "power-cap", "--power-cap", "k80=100", "--anyway")
    assert "10de:102d=100" in text and "k80 gets a limit" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["power-cap"], "which cards"),
        (["power-cap", "--power-cap", "180"], "which cards"),
        (["power-cap", "--power-cap", "p40=400"], "made for 250 W"),
        (["thermal-guard", "--gpu", "p40", "--power-cap", "120"], "which cards"),
        (["exporter", "--interval", "nan"], "seconds apart"),
    ],
)
def test_what_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["monitor", "--systemd", *arguments]) == 2
    assert said in capsys.readouterr().err
