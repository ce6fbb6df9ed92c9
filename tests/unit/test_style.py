"""The whole tree is formatted, lint-free and typed, and names nothing it must not name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / "python"
CONFIG = ["--config", str(PYTHON / "pyproject.toml")]
PLACES = [str(PYTHON), str(ROOT / "tools"), str(ROOT / "tests")]


def run(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=PYTHON, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_lint() -> None:
    run("ruff", "check", "--no-cache", *CONFIG, *PLACES)


def test_format() -> None:
    run("ruff", "format", "--no-cache", "--check", *CONFIG, *PLACES)


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="skipped: tomli is typed by the standard library's twin"
)
def test_types() -> None:
    tools = [str(path) for path in sorted((ROOT / "tools").glob("*.py"))]
    run("mypy", "--cache-dir", "/dev/null", "src", *tools)


def test_no_host_but_these_and_no_path_of_a_machine() -> None:
    """Registries and mirrors are a setting: no file names the host of one."""
    hosts = {"json-schema.org", "www.w3.org", "127.0.0.1", "example.org", "index.invalid", "h"}
    hosts |= {"cyclonedx.org", "in-toto.io", "slsa.dev"}  # names of formats
    hosts |= {"download.nvidia.com"}  # headers that pkgs/nvidia-pstated is compiled with
    hosts |= {"github.com", "learn.microsoft.com"}  # in lines of llama.cpp that patches quote
    address = re.compile(r"https?://([A-Za-z0-9._-]+)")
    home = re.compile(r"(?<![\w.~-])/(?:root|home)/(?!u(?:ser)?\b)[\w.]")
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if names.returncode:
        pytest.skip("skipped: not a git checkout")
    found = []
    for name in names.stdout.split("\0"):
        path = ROOT / name
        if name and path.is_file() and not path.is_symlink():
            text = path.read_text(encoding="utf-8", errors="ignore")
            found += [f"{name}: {host}" for host in address.findall(text) if host not in hosts]
            found += [f"{name}: {match[0]}" for match in home.finditer(text)]
    assert not found
