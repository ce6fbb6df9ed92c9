"""The command line as a person meets it: exit codes, messages, JSON, terminals, broken pipes."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import builders
import pytest
import tiny

from legacy_cuda import catalog
from legacy_cuda.cli import main, output
from legacy_cuda.errors import SurroundingsError, UserError

COMMANDS = (
    "audit",
    "bench",
    "build",
    "doctor",
    "gpus",
    "index",
    "monitor",
    "plan",
    "replay",
    "resolve",
    "serve",
    "toolchain",
    "up",
    "verify",
)
HEAVY = ("torch", "rich", "requests", "packaging", "uv", "isal", "zstandard", "concurrent.futures")
HEAVY += ("pynvml", "prometheus_client")


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny.clean_variables(tmp_path_factory.mktemp("home"))


def run(variables: dict[str, str], *arguments: str, **options: Any) -> Any:
    """Run the command; no traceback may come out of it."""
    settings = {"capture_output": True, "text": True, "timeout": 60, **options}
    done = subprocess.run([*tiny.command(), *arguments], env=variables, check=False, **settings)
    if settings["text"]:
        assert "Traceback" not in (done.stderr or "")
    return done


# ------------------------------------------------------------------------- help and usage


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(variables: dict[str, str], command: str) -> None:
    done = run(variables, *([command] if command else []), "--help")
    assert done.returncode == 0 and done.stderr == ""
    assert "examples:" in done.stdout or command == ""
    assert max(map(len, done.stdout.splitlines())) <= 100
    if not command:
        assert all(f"\n    {name}" in done.stdout for name in COMMANDS)
        assert "exit codes" in done.stdout


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["audit"], ["audit", "x.so"], ["gpus", "--nonsense"]]
)
def test_wrong_usage(variables: dict[str, str], arguments: list[str]) -> None:
    done = run(variables, *arguments)
    assert done.returncode == 2
    assert "usage:" in done.stderr and done.stdout == ""


def test_version(variables: dict[str, str]) -> None:
    assert re.fullmatch(r"legacy-cuda \d+\.\d+\.\d+\n", run(variables, "--version").stdout)


# ---------------------------------------------------------------------- JSON and exit codes


def document(done: Any, schema: str) -> Any:
    """The one JSON document on standard output."""
    content = json.loads(done.stdout)
    assert content["schema"] == f"legacy-cuda/{schema}/1"
    return content


def test_gpus(variables: dict[str, str]) -> None:
    done = run(variables, "gpus", "--json")
    assert done.returncode == 0
    listed = document(done, "gpus")["gpus"]
    assert [item["name"] for item in listed] == [gpu.name for gpu in catalog.gpus()]
    (one,) = document(run(variables, "gpus", "10DE:1B38", "--json"), "gpus")["gpus"]
    assert (one["name"], one["capability"]) == ("p40", "6.1")
    assert "Tesla P40" in run(variables, "gpus", "p40").stdout


def test_resolve_to_a_stack(variables: dict[str, str]) -> None:
    done = run(variables, "resolve", "p40", "--json")
    answer = document(done, "resolve")
    assert done.returncode == 0
    assert (answer["offered"], answer["stack"], answer["lock"]) == (True, "pascal", tiny.LOCK)
    assert "stack pascal" in run(variables, "resolve", "p40").stdout


@pytest.mark.parametrize("command", ["resolve", "up"])
def test_a_refusal(variables: dict[str, str], command: str) -> None:
    done = run(variables, command, "k80", "v100", "rtx4090", "--json")
    if done.returncode == 2:  # the catalog has no such newer card
        done = run(variables, command, "k80", "v100", "--json")
    answer = document(done, "resolve")
    assert done.returncode == 1
    assert not answer["offered"] and answer["refusal"]["because"]
    text = run(variables, command, *answer["gpus"])
    assert text.returncode == 1 and "refused [" in text.stdout
    assert not Path(variables["LEGACY_CUDA_HOME"]).exists()


def test_an_unknown_card(variables: dict[str, str]) -> None:
    for command in (["resolve"], ["up"], ["gpus"], ["audit", "x.so", "--gpu"]):
        done = run(variables, *command, "p41")
        assert done.returncode == 2
        assert "'p41'" in done.stderr and "did you mean" in done.stderr and "p40" in done.stderr
        assert "legacy-cuda gpus" in done.stderr
        assert done.stdout == ""


def test_an_error_as_json(variables: dict[str, str]) -> None:
    done = run(variables, "resolve", "p41", "--json")
    content = document(done, "error")
    assert done.returncode == content["exit_code"] == 2
    assert "p41" in content["error"] and "p40" in content["why"]


def test_an_unknown_engine(variables: dict[str, str]) -> None:
    done = run(variables, "resolve", "p40", "--engine", "tourch")
    assert done.returncode == 2
    assert "'tourch'" in done.stderr and "torch" in done.stderr.split("known engines:")[1]


@pytest.mark.parametrize("text", ["0xp40", "100xp40", "²xp40", "-1xp40", "2x", "x", "2xp41"])
def test_a_count_that_is_none(variables: dict[str, str], text: str) -> None:
    assert run(variables, "resolve", "--", text).returncode == 2


def test_a_count() -> None:
    assert [gpu.name for gpu in output.read_gpus(["2xp40", "k80, p4"])] == [
        "p40",
        "p40",
        "k80",
        "p4",
    ]
    assert len(output.read_gpus(["16xp40"])) == 16
    with pytest.raises(UserError):
        output.read_gpus([" , "])


def test_this_machine(variables: dict[str, str]) -> None:
    """Without a name the machine is asked; here there is one, or the message says what to do."""
    done = run(variables, "resolve")
    assert done.returncode in (0, 1, 2)
    if done.returncode == 2:
        assert "GPU" in done.stderr and "->" in done.stderr


def test_an_index_that_cannot_be_reached_is_3(variables: dict[str, str]) -> None:
    done = run(variables, "audit", "no-such-package==1.0", "--gpu", "p40")
    assert done.returncode == 3


def test_mistakes_of_ours_are_told_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise LookupError("it is lost")

    monkeypatch.setattr(catalog, "gpus", fail)
    assert main(["gpus"]) == 3
    captured = capsys.readouterr()
    assert "legacy-cuda itself failed" in captured.err and "LookupError" in captured.err
    assert "--debug" in captured.err
    assert main(["--debug", "gpus"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_debug_shows_where(variables: dict[str, str]) -> None:
    done = subprocess.run(
        [*tiny.command(), "--debug", "gpus", "p41"],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" in done.stderr and "UserError" in done.stderr
    assert done.returncode == 2


def test_an_error_says_what_why_and_what_next(capsys: pytest.CaptureFixture[str]) -> None:
    output.error(SurroundingsError("it is full", "no space\nat all", "free some\nor pay"))
    said = "error: it is full\n  no space\n  at all\n  -> free some\n  -> or pay\n"
    assert capsys.readouterr().err == said


# -------------------------------------------------------------------------------- audit


def library(number: int) -> bytes:
    return builders.library(builders.container(builders.entry(number=number)))


def test_audit_says_yes_and_no(variables: dict[str, str], tmp_path: Path) -> None:
    good, bad = tmp_path / "good.so", tmp_path / "bad.so"
    good.write_bytes(library(61))
    bad.write_bytes(library(80))
    done = run(variables, "audit", str(good), "--gpu", "p40,p4", "--json")
    assert done.returncode == 0
    (subject,) = document(done, "audit")["subjects"]
    assert [item["gpu"] for item in subject["verdicts"]] == ["p40", "p4"]
    assert {item["outcome"] for item in subject["verdicts"]} == {"runs"}
    done = run(variables, "audit", str(good), str(bad), "--gpu", "p40", "--verbose")
    assert done.returncode == 1
    assert "does not run" in done.stdout and "bad.so" in done.stdout


def test_audit_of_recorded_wheels(variables: dict[str, str]) -> None:
    done = run(variables, "audit", "torch==2.8.0", "--gpu", "p40")
    assert done.returncode == 1
    assert "torch==2.7.1" in done.stdout
    assert run(variables, "audit", "torch==2.7.1", "--gpu", "p40").returncode == 0


def test_audit_names_the_build_of_what_no_wheel_has(
    variables: dict[str, str], tmp_path: Path
) -> None:
    wheel = tiny.make_wheel("llama_cpp_python", "0.3.36", {"llama_cpp/lib/x.so": library(61)})
    path = tmp_path / wheel.name
    path.write_bytes(wheel.data)
    done = run(variables, "audit", str(path), "--gpu", "k80,p40", "--json")
    assert done.returncode == 1
    (subject,) = document(done, "audit")["subjects"]
    built = [verdict["compiled_by"] for verdict in subject["verdicts"]]
    assert built == ["legacy-cuda build llama-cpp-python --for k80", None]
    done = run(variables, "audit", str(path), "--gpu", "k80,k40")
    assert "compiled for it by: legacy-cuda build llama-cpp-python --for k80" in done.stdout
    assert "--for k40" not in done.stdout, "no recipe compiles for 3.5"


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "kind",
    ["text", "empty", "fifo", "link to a fifo", "/dev/null", "missing", "broken", "traversal", ""],
)
def test_audit_refuses(variables: dict[str, str], tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x-1.0-py3-none-any.whl"
    if kind == "text":
        path.write_text("not a wheel " * 100)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind in ("fifo", "link to a fifo"):
        os.mkfifo(tmp_path / "fifo")
        path = tmp_path / "fifo"
        if kind != "fifo":
            path = tmp_path / "link"
            path.symlink_to("fifo")
    elif kind == "broken":
        path.write_bytes(tiny.make_torch().data[:-200])
    elif kind == "traversal":
        path.write_bytes(builders.wheel({"../../x.so": library(61)}))
    target = {"/dev/null": "/dev/null", "": ""}.get(kind, str(path))
    done = run(variables, "audit", target, "--gpu", "p40", "--json", timeout=30)
    assert done.returncode == 2, done.stderr
    assert document(done, "error")["error"]


def test_audit_of_a_folder_without_device_code(variables: dict[str, str], tmp_path: Path) -> None:
    done = run(variables, "audit", str(tmp_path), "--gpu", "p40", "--json")
    assert done.returncode == 0
    (subject,) = document(done, "audit")["subjects"]
    assert subject["verdicts"][0]["outcome"] == "no-device-code"


def test_audit_of_a_name_that_is_no_text(variables: dict[str, str], tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff.so"
    Path(os.fsdecode(name)).write_bytes(library(61))
    for extra in ([], ["--json"], ["--verbose"]):
        done = run(variables, "audit", os.fsdecode(name), "--gpu", "p40", *extra)
        assert done.returncode == 0, done.stderr


# --------------------------------------------------------------------- where output goes


def test_a_reader_that_stops_reading(variables: dict[str, str]) -> None:
    for arguments in (["gpus", "--json"], ["gpus"], ["--help"], ["resolve", "p40"]):
        read, write = os.pipe()
        os.close(read)
        try:
            done = run(
                variables, *arguments, capture_output=False, stdout=write, stderr=subprocess.PIPE
            )
        finally:
            os.close(write)
        assert done.stderr == "", arguments
        assert done.returncode == 141


def test_standard_output_is_closed(variables: dict[str, str]) -> None:
    for shut in (">&-", "2>&-", ">&- 2>&-", "<&-"):
        for arguments in ("gpus", "resolve p40 --json", "--help"):
            words = " ".join(f"'{word}'" for word in tiny.command())
            done = subprocess.run(
                ["sh", "-c", f"{words} {arguments} {shut}"],
                env=variables,
                capture_output=True,
                text=True,
                check=False,
            )
            assert (done.returncode, done.stderr) == (0, ""), (shut, arguments)


def test_standard_output_is_full(variables: dict[str, str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = run(variables, "gpus", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 3
    assert "No space left" in done.stderr and "Exception ignored" not in done.stderr


def on_terminal(variables: dict[str, str], columns: int, *arguments: str, **more: str) -> str:
    """What the command writes to a terminal of so many columns."""
    leader, follower = pty.openpty()
    try:
        process = subprocess.Popen(
            [*tiny.command(), *arguments],
            env={**variables, "TERM": "xterm", "COLUMNS": str(columns), **more},
            stdin=subprocess.DEVNULL,
            stdout=follower,
            stderr=follower,
        )
        os.close(follower)
        written = b""
        while True:
            try:
                piece = os.read(leader, 1 << 16)
            except OSError:  # Linux: the other end is closed
                break
            if not piece:
                break
            written += piece
        assert process.wait(60) == 0
    finally:
        os.close(leader)
    return written.decode()


ESCAPE = re.compile(r"\033\[[0-9;]*m")


def test_colours_on_a_terminal_only(variables: dict[str, str]) -> None:
    assert ESCAPE.search(on_terminal(variables, 100, "resolve", "p40"))
    assert not ESCAPE.search(on_terminal(variables, 100, "resolve", "p40", NO_COLOR="1"))
    assert not ESCAPE.search(run(variables, "resolve", "p40").stdout)


@pytest.mark.parametrize("columns", [1, 60, 80, 300])
def test_lines_fit_the_terminal(variables: dict[str, str], columns: int) -> None:
    text = ESCAPE.sub("", on_terminal(variables, columns, "resolve", "p40", "m40"))
    longest = max(map(len, text.splitlines()))
    if columns >= 60:
        assert longest <= min(columns, 120), text
    same = run(variables, "resolve", "p40", "m40").stdout
    assert " ".join(text.split()) == " ".join(same.split())


# -------------------------------------------------------------------------- start-up


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["resolve", "p40"], ["resolve", "p40", "--json"], ["gpus"], ["doctor"]],
)
def test_heavy_modules_are_not_imported(variables: dict[str, str], arguments: list[str]) -> None:
    program = (
        "import sys\nfrom legacy_cuda.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        "print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=variables, capture_output=True, text=True, check=True
    )
    assert not set(HEAVY) & set(done.stderr.split())
