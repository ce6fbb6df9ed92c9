"""What ``legacy-cuda serve --compose`` prints, by the Compose Specification's own schema.

The schema is that in the wheel of docker-compose 1.29.2 on PyPI, the newest there; PyYAML reads the
files. Neither is installed into the environment of the tests.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import model_files
import pytest
from jsonschema import Draft7Validator

from legacy_cuda.fetch import uv_binary

SCHEMA = "compose/config/compose_spec.json"


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with PyYAML, and with docker-compose's files, neither of them installed."""
    folder = tmp_path_factory.mktemp("tools")
    install = [uv_binary(), "pip", "install", "-q", "--target", str(folder), "--no-deps"]
    subprocess.run([*install, "--only-binary", ":all:", "pyyaml", "docker-compose==1.29.2"],
                   check=True)  # fmt: skip
    return folder


def read(tools: Path, path: Path) -> Any:
    code = "import json, sys, yaml; json.dump(yaml.safe_load(open(sys.argv[1])), sys.stdout)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tools)!r}); {code}", path],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.mark.parametrize("engine", ["llama-server", "ollama", "vllm"])
def test_a_compose_file_is_one(tools: Path, tmp_path: Path, engine: str) -> None:
    program = tmp_path / engine
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    model = {"llama-server": "a $m: 'x' # ü.gguf", "ollama": "hermes3:8b", "vllm": "folder"}[engine]
    asked = model
    if engine == "llama-server":
        (tmp_path / model).write_bytes(model_files.llama())
        asked = str(tmp_path / model)
    elif engine == "vllm":
        model_files.folder(tmp_path / model)
        asked = str(tmp_path / model)
    done = subprocess.run(
        [sys.executable, "-m", "legacy_cuda", "serve", asked, "--engine", engine, "--gpu", "2xp40",
         "--program", str(program), "--compose"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    path = tmp_path / "compose.yaml"
    path.write_text(done.stdout)
    content = read(tools, path)
    schema = json.loads((tools / SCHEMA).read_text())
    assert not [error.message for error in Draft7Validator(schema).iter_errors(content)]
    (service,) = content["services"].values()
    devices = service["deploy"]["resources"]["reservations"]["devices"]
    assert devices[0]["device_ids"] == ["0", "1"]
    if engine == "llama-server":
        mounted = {volume["source"] for volume in service["volumes"]}
        assert str(tmp_path / model).replace("$", "$$") in mounted
    broken = {**content, "services": {"x": {"imag": 1}}}
    assert list(Draft7Validator(schema).iter_errors(broken))
