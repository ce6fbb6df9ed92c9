"""The list of what is taken from nixpkgs is whole, and the script that checks it finds faults."""

from __future__ import annotations

from pathlib import Path

import pytest

import nixpkgs_attributes


def test_everything_that_is_used_is_listed() -> None:
    rows, own = nixpkgs_attributes.load()
    names = {row.name for row in rows}
    assert len(names) == len(rows)
    used = nixpkgs_attributes.used(own)
    assert {"fetchPypi", "python3Packages.triton-cuda", "testers.runNixOSTest"} <= set(used)
    assert nixpkgs_attributes.missing_from(set(used), names) == []


def test_what_is_not_listed_is_found() -> None:
    listed = {"lib", "python3Packages.torch", "dockerTools"}
    used = {"lib.sort", "python3Packages.torch.override", "python3Packages", "ollama", "library"}
    assert nixpkgs_attributes.missing_from(used, listed) == ["library", "ollama"]


def test_a_checkout_is_looked_into(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every text in its file: fine. Without one of the files, or the text, it is not."""
    rows, _ = nixpkgs_attributes.load()
    texts: dict[str, list[str]] = {}
    for row in rows:
        texts.setdefault(row.file, []).append(row.text)
    for file, lines in texts.items():
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(["first", *lines]))
    folder = str(tmp_path)
    monkeypatch.setattr("sys.argv", ["", "--checkout", folder, "--cuda-legacy", folder])
    assert nixpkgs_attributes.main() == 0
    assert "line 2" in capsys.readouterr().out
    (tmp_path / "pkgs/build-support/mkshell/default.nix").unlink()
    ollama = tmp_path / "pkgs/by-name/ol/ollama/package.nix"
    ollama.write_text(ollama.read_text().replace("acceleration ? null", "acceleration"))
    assert nixpkgs_attributes.main() == 1
    missing = [line for line in capsys.readouterr().out.splitlines() if "NOT FOUND" in line]
    assert [line.split()[0] for line in missing] == ["mkShell", "ollama"]
