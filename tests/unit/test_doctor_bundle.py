"""What doctor passes on: no secret that was planted survives; what helps stays."""

from __future__ import annotations

import io
import json
import string
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from machines import TODAY, Machine

from legacy_cuda import catalog
from legacy_cuda.catalog.doctor import rules_of
from legacy_cuda.cli import main
from legacy_cuda.doctor import bundle, logs, redact
from legacy_cuda.doctor.diagnosis import changes, diagnose
from legacy_cuda.doctor.facts import Facts
from legacy_cuda.doctor.place import Place
from legacy_cuda.doctor.probes import engines, kernel

NOBODY = redact.Known()
ALICE = "alicecarol"
WEB = "http:" + "//"  # no file names a host

# ------------------------------------------------------------------------------- texts

HEX = st.sampled_from("0123456789abcdef")
WORD = st.sampled_from(string.ascii_letters + string.digits)


def joined(signs: st.SearchStrategy[str], size: int) -> st.SearchStrategy[str]:
    return st.lists(signs, min_size=size, max_size=size).map("".join)


def random_text(size: int) -> st.SearchStrategy[str]:
    """As keys are made: letters and digits, some of each."""
    return joined(WORD, size - 6).map(lambda text: f"a1B{text}2c3")


OCTET = st.integers(1, 254).map(str)
SECRETS: dict[str, st.SearchStrategy[str]] = {
    "uuid": st.tuples(*(joined(HEX, n) for n in (8, 4, 4, 4, 12))).map("-".join),
    "gpu-uuid": st.tuples(*(joined(HEX, n) for n in (8, 4, 4, 4, 12))).map(
        lambda parts: f"GPU-{'-'.join(parts)}"
    ),
    "mac": st.lists(joined(HEX, 2), min_size=6, max_size=6).map(":".join),
    "ip4": st.tuples(st.sampled_from(["10", "192", "203"]), OCTET, OCTET, OCTET).map(".".join),
    "ip6": st.lists(joined(HEX, 4), min_size=6, max_size=6).map(
        lambda parts: f"2001:db8:{':'.join(parts)}"
    ),
    "mail": joined(WORD, 8).map(lambda name: f"{name}@mail.example.net"),
    "token": st.tuples(
        st.sampled_from(["hf_", "sk-", "ghp_", "github_pat_", "glpat-", "nvapi-"]), random_text(24)
    ).map("".join),
    "long": random_text(40),
    "home": joined(st.sampled_from(string.ascii_lowercase), 9).map(lambda name: f"/home/{name}"),
    "serial": st.integers(10**12, 10**13 - 1).map(str),
}
AROUND = (
    "[    5.1] NVRM: {}: no CUDA-capable device is detected",
    "x {} y",
    "({})",
    '"{}"',
    "a={},b",
    "NVRM: GPU at {}.",
    "{}",
    "ExecStart=/bin/ollama serve --x {} --y",
)
NAMED = (
    "--api-key {}",
    "--token={}",
    "OPENAI_API_KEY={}",
    '"password": "{}"',
    "Authorization: Bearer {}",
    "non-default args: {{'api_key': ['abc', '{}'], 'dtype': 'bfloat16'}}",
    "hf_token: {}",
    "Serial Number: 7{}",
)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_no_secret_survives(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(SECRETS)))
    secret = data.draw(SECRETS[kind])
    text = data.draw(st.sampled_from(AROUND)).format(secret)
    shown = redact.redacted(text, NOBODY)
    assert secret not in shown and secret.removeprefix("/home/") not in shown, (kind, shown)


@settings(max_examples=100, deadline=None)
@given(random_text(10), st.sampled_from(NAMED))
def test_what_is_called_a_secret_is_one(secret: str, text: str) -> None:
    assert secret not in redact.redacted(text.format(secret), NOBODY)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=300))
@example("::::::::::" * 30)
@example("a" * 300)
def test_any_text(text: str) -> None:
    begin = time.monotonic()
    redact.redacted(text, redact.Known(("h.example.net", "h"), ("u", "uu")))
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    "piece", ["a", "-", "key", "a:", "=", "1.", "--key ", "@", "/home/", "key-"]
)
def test_a_long_text_is_done_in_time(piece: str) -> None:
    begin = time.process_time()
    redact.redacted(piece * (60_000 // len(piece)), redact.Known(("h.example",), ("u",)))
    assert time.process_time() - begin < 5


def test_a_host_and_its_domain_and_users() -> None:
    known = redact.Known(("vault7", "vault7.example.net"), ("alice", "Alice B. Carol"))
    text = (
        "Aug 16 00:44:13 otherhost ollama[3422]: x\n"
        "2026-08-16T00:44:13+12:00 otherhost kernel: y\n"
        "vault7.corp.example.net VAULT7 alice Alice B. Carol vault70 malice /srv/alice/models\n"
        f"{WEB}other.example.net:8000/v1 {WEB}a:b@c/d {WEB}localhost:11434 {WEB}127.0.0.1/\n"
        "[    0.0] Linux version 6.12.48 (joe@build) (gcc 14) #1 SMP\n"
    )
    shown = redact.redacted(text, known)
    for word in ("otherhost", "corp", "alice/", "Carol", "other.example", "a:b", "joe"):
        assert word not in shown
    assert "vault70 malice" in shown and f"{WEB}localhost:11434" in shown
    assert f"{WEB}127.0.0.1/" in shown and "Linux version 6.12.48" in shown
    assert shown.count("\n") == text.count("\n")


KEEP = (
    "[    5.1] NVRM: GPU 0000:3b:00.0: RmInitAdapter failed! (0x24:0x72:1603)",
    "NVRM: Xid (PCI:0000:44:00): 79, GPU has fallen off the bus.",
    "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  580.173.02",
    "modprobe: ERROR: could not insert 'nvidia': Key was rejected by service",
    "nvidia-cudnn-cu12 9.11.0.98; 9.10.2 is the last for Tesla P40 (6.1) at 0000:3b:00.0",
    "/usr/lib/x86_64-linux-gnu/libcuda.so.580.173.02",
    "torch 2.9.9+cu128: libtorch_cuda.so has code for it in 0 of 10 containers",
    "c10::Error, at ../c10/cuda/CUDAException.cpp:43",
    "/sys/kernel/iommu_groups/7/devices/0000:3b:00.1",
    "level=INFO source=server.go:672 at 12:30:05",
)


@pytest.mark.parametrize("text", KEEP)
def test_what_helps_stays(text: str) -> None:
    assert redact.redacted(text, redact.Known(("vault7",), ("alice",))) == text


def test_people() -> None:
    passwd = (
        "root:x:0:0:root:/root:/bin/sh\nollama:x:998:998::/usr/share/ollama:/bin/false\n"
        "nixbld1:x:30001:30000:builder:/x:/y\nbob:x:1000:1000:Bob Smith,,,:/home/u:/bin/sh\n"
        "nobody:x:65534:65534:n:/:/x\nbroken:line\nx:x:²³45:1:::\n"
    )
    assert list(redact.people(passwd)) == ["nixbld1", "builder", "bob", "Bob Smith"]


# ------------------------------------------------------------------------------- archives


def planted(root: Path) -> tuple[str, ...]:
    """A machine with a secret in every file that doctor reads; the secrets."""
    secrets = (
        *("S3cr3tPhrase", "vault7", ALICE, "GPU-12345678-1234-1234-1234-1234567890ab"),
        *("hf_abcDEF123456789012345678", "203.0.113.77", "de:ad:be:ef:00:11"),
        *("1234567890123", "fe80::dead:beef", "corp.example.net"),
    )
    machine = Machine(root, "p40", opened=True)
    machine.write("/proc/sys/kernel/osrelease", "6.12.9-vault7\n")
    machine.write("/etc/hostname", "vault7.corp.example.net\n")
    machine.write("/etc/passwd", f"{ALICE}:x:1000:1000::/x:/bin/sh\n")
    lines = "".join(
        f"[ 5.{n}] NVRM: {secret} RmInitAdapter failed!\n" for n, secret in enumerate(secrets[1:])
    )
    machine.write("/var/log/dmesg", f"{lines}[ 9.0] nvidia: vault7 {secrets[3]}\n")
    site = f"/home/{ALICE}/.venv/lib/python3.12/site-packages"
    machine.write(f"{site}/torch-2.7.1.dist-info/METADATA", "")
    machine.write(
        "/etc/systemd/system/ai.service",
        f"[Service]\nExecStart=/home/{ALICE}/vllm serve --api-key S3cr3tPhrase --dtype bfloat16 "
        "--host 203.0.113.77\nEnvironment=HF_TOKEN=hf_abcDEF123456789012345678\n"
        "Environment=OLLAMA_HOST=203.0.113.77 CUDA_VISIBLE_DEVICES="
        "GPU-12345678-1234-1234-1234-1234567890ab\n",
    )
    machine.write("/etc/os-release", 'ID=debian\nPRETTY_NAME="Debian of vault7"\n')
    return secrets


KEY = "Sup3rS3cretValue!"
UUID = "12345678-1234-1234-1234-1234567890ab"
NO_IMAGE = "no kernel image is available for execution on the device"
LONG = (
    f"{'x' * 40} vllm serve m --api-key {KEY * 12} CUDA error: {NO_IMAGE}",
    f"CUDA error: {NO_IMAGE} {'y ' * 112}GPU-{UUID} z",
)


@pytest.mark.parametrize("line", LONG)
def test_no_piece_of_a_secret_stays(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines are cut where they are shown, after they were redacted: half a key is no key."""
    (tmp_path / "a.log").write_text(line + "\n")
    path = tmp_path / "x.tar.gz"
    assert main(["doctor", "--log", str(tmp_path / "a.log"), "--bundle", str(path)]) == 1
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 120
    for text in members(path).values():
        assert NO_IMAGE in " ".join(text.split()) and "12345678" not in text
        assert not any(KEY[at : at + 5] in text for at in range(len(KEY) - 4))


def filler(size: int) -> str:
    return ("a b c d " * (size // 8 + 1))[:size]


@pytest.mark.parametrize("secret", [f"--api-key {KEY}", f"GPU-{UUID}", f"token: Bearer {KEY}"])
def test_no_piece_of_a_secret_stays_where_a_line_is_cut(
    secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a long line what is around the text is kept, and it is read in blocks: either cut goes
    through the secret, at each of its letters."""
    monkeypatch.setattr(logs, "BLOCK", 4096)
    monkeypatch.setattr(logs, "LINE", 3000)
    for at in range(-4, len(secret) + 8):
        lines = [
            f"{filler(500)} {secret} {filler(2000 - at)} {NO_IMAGE}",
            f"{NO_IMAGE} {filler(2000 - len(NO_IMAGE) - at)} {secret} {filler(900)}",
            f"{filler(4096 - 400 - at)} {secret} {filler(330)} {NO_IMAGE} {filler(900)}",
            f"{filler(3000)} {NO_IMAGE} {filler(1096 - len(NO_IMAGE) - at)} {secret} {filler(99)}",
        ]
        for number, line in enumerate(lines):
            (hit,) = logs.scan(logs.blocks(io.BytesIO(line.encode())), rules_of("program")).hits
            shown = "".join(redact.redacted(item.text, NOBODY) for item in hit.lines)
            assert NO_IMAGE in shown
            for word in (KEY, UUID):
                pieces = [word[n : n + 5] for n in range(len(word) - 4)]
                assert not any(piece in shown for piece in pieces), (number, at, shown)


def test_a_cut_line_of_the_kernel() -> None:
    for size in range(940, 1000):
        (line,) = kernel.about_gpus([f"NVRM: {'a' * (size - 6)} GPU-{UUID} {'b ' * 50}"])
        assert "1234" not in redact.redacted(line, NOBODY)


def test_other_machines_and_accounts_of_services(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "p40")
    machine.write(
        "/etc/systemd/system/ai.service",
        "[Service]\nUser=svcdora\n"
        "Environment=OLLAMA_HOST=rack7:11434 LLAMA_ARG_RPC=rack7:1,rack7:2 "
        f"OLLAMA_ORIGINS=localhost,{WEB}rack7 VLLM_HOST_IP=[::]:8000\n"
        "ExecStart=/usr/bin/env MASTER_ADDR=rack7 /usr/bin/llama-server "
        "--host 127.0.0.1 --rpc rack7:1 --allowed-origins=rack7 "
        "--no-host --flash-attn on --addr=0.0.0.0:1 --host 127.rack7\n",
    )
    engines = machine.facts().engines
    assert engines is not None
    (service,) = engines.services
    assert "rack7" not in repr(service) and "svcdora" not in repr(service)
    assert service.variable("VLLM_HOST_IP") == "[::]:8000"
    words = " ".join(service.command.value)
    assert "--host 127.0.0.1 --rpc (hidden) --allowed-origins=(hidden)" in words
    assert "--no-host --flash-attn on --addr=0.0.0.0:1 --host (hidden)" in words


@pytest.mark.parametrize(
    ("command", "left"),
    [
        ("vllm serve --api-key S3cr3t S3cr3t2 --dtype half m", "--dtype half m"),
        ("vllm serve m --api-key=S3cr3t --dtype half", "--dtype half"),
        ("llama-server -hft S3cr3t -ngl 99", "-ngl 99"),
        ("env HF_TOKEN=S3cr3t llama-server --api-key -S3cr3t -ngl 0", "-ngl 0"),
    ],
)
def test_every_key_of_a_command_is_hidden(command: str, left: str) -> None:
    words = " ".join(engines.shown(command.split()))
    assert "S3cr3t" not in words and words.endswith(left)


def members(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        return {
            item.name: archive.extractfile(item).read().decode()  # type: ignore[union-attr]
            for item in archive
        }


def test_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secrets = planted(tmp_path / "m")
    before = json.dumps(machine_document(capsys, tmp_path / "m"))
    path = tmp_path / "doctor.tar.gz"
    assert main(["doctor", "--root", str(tmp_path / "m"), "--bundle", str(path)]) == 1
    assert "written:" in capsys.readouterr().out
    files = members(path)
    assert set(files) == {"legacy-cuda-doctor/doctor.txt", "legacy-cuda-doctor/doctor.json"}
    for secret in secrets[1:]:
        assert secret in before  # so there is something to take out
    for name, text in files.items():
        for secret in secrets:
            assert secret.lower() not in text.lower(), (name, secret)
    document = json.loads(files["legacy-cuda-doctor/doctor.json"])
    schema = Path(catalog.__file__).parent / "schema" / "doctor-report.schema.json"
    Draft202012Validator(json.loads(schema.read_text(encoding="utf-8"))).validate(document)
    assert {item["id"] for item in document["findings"]} >= {"D2", "E1"}
    assert "Tesla P40" in files["legacy-cuda-doctor/doctor.txt"]
    assert "RmInitAdapter failed!" in files["legacy-cuda-doctor/doctor.json"]
    first = path.read_bytes()
    assert main(["doctor", "--root", str(tmp_path / "m"), "--bundle", str(path)]) == 1
    assert path.read_bytes() == first
    assert path.stat().st_mode & 0o777 == 0o600
    assert [item.name for item in tmp_path.iterdir() if item.name.startswith(".")] == []


def machine_document(capsys: pytest.CaptureFixture[str], root: Path) -> dict[str, Any]:
    main(["doctor", "--root", str(root), "--json"])
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    return content


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(["a.txt", "b.json"]), st.text(max_size=100)))
def test_archives_are_the_same_bytes(files: dict[str, str]) -> None:
    data = bundle.packed(files)
    assert data == bundle.packed(dict(reversed(files.items())))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert [item.name for item in archive] == sorted(f"{bundle.FOLDER}/{x}" for x in files)
        assert all(item.mtime == 0 and item.uid == 0 and item.uname == "" for item in archive)


def test_where_no_bundle_can_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Machine(tmp_path / "m", "p40")
    path = tmp_path / "none" / "x.tar.gz"
    assert main(["doctor", "--root", str(tmp_path / "m"), "--bundle", str(path)]) == 3
    assert "cannot be written" in capsys.readouterr().err


def test_names_of_this_machine(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "p40")
    machine.write("/proc/sys/kernel/hostname", "localhost\n")
    machine.write("/etc/hostname", "box.lan\n")
    known = bundle.known(Place(tmp_path), {"USER": "root", "HOME": "/srv/dora", "SUDO_USER": "eve"})
    assert known.hosts == ("box", "box.lan") and set(known.users) >= {"dora", "eve"}
    assert "root" not in known.users and "localhost" not in known.hosts


# ------------------------------------------------------------------------------- watching


def test_changes(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "p40")
    good = diagnose(machine.facts())
    assert changes(good, good) == ()
    machine.driver("595.71.05")
    bad = diagnose(machine.facts())
    lines = changes(good, bad)
    assert lines[0].startswith("new: error D1: this driver branch no longer serves the GPU: Tesla")
    assert any(line.startswith("no longer fine: driver 580") for line in lines)
    assert any(line.startswith("gone: error D1") for line in changes(bad, good))
    machine.driver("590.48.01")
    assert any(
        line.startswith("changed: error D1") for line in changes(bad, diagnose(machine.facts()))
    )
    blind = diagnose(Facts(TODAY))
    assert all(not line.startswith("new") for line in changes(good, blind))


def test_watch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(tmp_path, "p40")
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 1:
            return
        if len(waited) == 2:
            machine.driver("595.71.05")
            return
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    assert main(["doctor", "--root", str(tmp_path), "--watch", "5"]) == 1
    text = capsys.readouterr().out
    assert waited == [5.0, 5.0, 5.0]
    assert "nothing wrong found" in text and text.count("new: error D1") == 1


@pytest.mark.parametrize("more", [["--json"], ["--log", "-"], ["--bundle", "x.tar.gz"]])
def test_watch_goes_alone(
    more: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Machine(tmp_path, "p40")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"x")))
    assert main(["doctor", "--root", str(tmp_path), "--watch", *more]) == 2
    assert "--watch goes with neither" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["0", "nan", "-1", "x", "1e9"])
def test_times_that_are_none(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert main(["doctor", "--watch", seconds]) == 2
    except SystemExit as stop:
        assert stop.code == 2
    assert "between 1 and 86400" in capsys.readouterr().err
