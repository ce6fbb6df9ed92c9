"""Downloads against a server on loopback that breaks off, lies, and does not know Range."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import builders
import pytest
import tiny

from legacy_cuda import fetch
from legacy_cuda.errors import SurroundingsError
from legacy_cuda.fetch import NoSolutionError, Remote

MIB = 1 << 20


def big(size: int = 5 * MIB) -> tiny.Wheel:
    return tiny.make_wheel("big", "1.0", {"big/data.bin": builders.noise(size)})


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tiny.Index]:
    with tiny.serve([big()]) as served:
        tiny.use(served, tmp_path, monkeypatch)
        yield served


def remote(index: tiny.Index, sha256: str = "") -> Remote:
    (wheel,) = index.wheels
    digest = sha256 or wheel.sha256
    return Remote(wheel.package, wheel.version, wheel.name, digest, url=index.link(wheel))


def part_of(wanted: Remote) -> Path:
    path = fetch.cached_path(wanted)
    return path.with_name(path.name + ".part")


def put_part(wanted: Remote, data: bytes) -> None:
    part_of(wanted).parent.mkdir(parents=True)
    part_of(wanted).write_bytes(data)


def spans(index: tiny.Index) -> list[str]:
    return [span for _, span in index.asked]


def test_download_and_cache(index: tiny.Index) -> None:
    wanted = remote(index)
    told: list[tuple[int, int]] = []
    path = fetch.download(wanted, progress=lambda done, total: told.append((done, total)))
    size = len(index.wheels[0].data)
    assert path.read_bytes() == index.wheels[0].data
    assert told[-1] == (size, size)
    assert not part_of(wanted).exists()
    assert fetch.download(wanted) == path
    assert spans(index) == [""], "the second one is served from the cache"


def test_a_download_goes_on_where_it_stopped(index: tiny.Index) -> None:
    wanted = remote(index)
    put_part(wanted, index.wheels[0].data[: 3 * MIB])
    assert fetch.download(wanted).read_bytes() == index.wheels[0].data
    assert spans(index) == [f"bytes={3 * MIB}-"]


def test_a_complete_part_is_only_checked(index: tiny.Index) -> None:
    wanted = remote(index)
    put_part(wanted, index.wheels[0].data)
    assert fetch.download(wanted).read_bytes() == index.wheels[0].data


def test_a_server_without_ranges_begins_again(index: tiny.Index) -> None:
    index.ranges = False
    wanted = remote(index)
    put_part(wanted, index.wheels[0].data[: 3 * MIB])
    assert fetch.download(wanted).read_bytes() == index.wheels[0].data


def test_a_part_of_something_else_is_thrown_away(index: tiny.Index) -> None:
    wanted = remote(index)
    put_part(wanted, b"x" * 1000)
    with pytest.raises(SurroundingsError, match="wrong sha256"):
        fetch.download(wanted)
    assert not part_of(wanted).exists() and not fetch.cached_path(wanted).exists()
    assert fetch.download(wanted).read_bytes() == index.wheels[0].data


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_is_cut_is_made_again(index: tiny.Index, ranges: bool) -> None:
    index.ranges = ranges
    index.cuts[index.wheels[0].name] = [2 * MIB, MIB + 5]
    assert fetch.download(remote(index)).read_bytes() == index.wheels[0].data
    assert len(index.asked) == 3
    assert all(span.startswith("bytes=") for span in spans(index)[1:])


def test_a_line_that_stays_broken(index: tiny.Index) -> None:
    index.cuts[index.wheels[0].name] = [MIB + 1] + [0] * 50
    wanted = remote(index)
    with pytest.raises(SurroundingsError, match="could not be downloaded") as caught:
        fetch.download(wanted)
    assert caught.value.exit_code == 3
    assert "goes on where it stopped" in caught.value.next_step
    assert part_of(wanted).stat().st_size >= MIB
    assert not fetch.cached_path(wanted).exists()
    index.cuts.clear()
    assert fetch.download(wanted).read_bytes() == index.wheels[0].data
    assert spans(index)[-1] != ""


def test_a_wrong_sha256(index: tiny.Index) -> None:
    wanted = remote(index, sha256="0" * 64)
    with pytest.raises(SurroundingsError, match="wrong sha256") as caught:
        fetch.download(wanted)
    assert index.wheels[0].sha256 in caught.value.why
    assert not part_of(wanted).exists() and not fetch.cached_path(wanted).exists()


def test_what_the_index_refuses_is_asked_for_once(index: tiny.Index) -> None:
    index.gone.add(index.wheels[0].name)
    with pytest.raises(SurroundingsError, match="could not be downloaded") as caught:
        fetch.download(remote(index))
    assert "404" in caught.value.why
    assert len(index.asked) == 1


def test_a_cache_that_cannot_be_written(
    index: tiny.Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LEGACY_CUDA_CACHE", str(tmp_path / "file"))
    with pytest.raises(SurroundingsError, match="could not be stored") as caught:
        fetch.download(remote(index))
    assert "LEGACY_CUDA_CACHE" in caught.value.next_step


def test_two_at_once_download_it_once(index: tiny.Index) -> None:
    index.gate = threading.Event()
    program = (
        "import sys; from legacy_cuda.fetch import Remote, download; "
        f"print(download(Remote(*{(*_plain(remote(index)),)!r})).stat().st_size)"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    threading.Timer(1.0, index.gate.set).start()
    sizes = [run.communicate(timeout=60)[0].strip() for run in runs]
    assert sizes == [str(len(index.wheels[0].data))] * 3
    assert len(index.asked) == 1


def _plain(wanted: Remote) -> list[object]:
    return [getattr(wanted, name) for name in Remote.__slots__]


def test_the_url_is_looked_up_where_it_is_not_known(index: tiny.Index) -> None:
    known = remote(index)
    wanted = Remote(known.package, known.version, known.file, known.sha256)
    assert fetch.download(wanted, tiny.PYTHON).read_bytes() == index.wheels[0].data


def test_another_file_on_the_index_than_was_pinned(index: tiny.Index) -> None:
    wanted = Remote("big", "1.0", index.wheels[0].name, "1" * 64)
    with pytest.raises(SurroundingsError, match="that is pinned"):
        fetch.download(wanted, tiny.PYTHON)


# ------------------------------------------------------------------------------- find_wheel


def test_find_wheel(index: tiny.Index) -> None:
    found = fetch.find_wheel("big", "1.0", "3.11")
    (wheel,) = index.wheels
    assert (found.file, found.sha256, found.url) == (wheel.name, wheel.sha256, index.link(wheel))


def test_find_wheel_takes_the_best_for_that_python(index: tiny.Index) -> None:
    tags = [
        "py3-none-any",
        "cp310-cp310-manylinux2014_x86_64",
        "cp311-cp311-manylinux_2_17_x86_64",
        "cp311-cp311-macosx_11_0_arm64",
        "1-cp311-cp311-manylinux_2_17_x86_64",
        "cp311-cp311-manylinux_2_39_aarch64",
    ]
    index.wheels = [tiny.make_wheel("many", "1.0", {"many.py": b""}, tag) for tag in tags]
    names = {python: fetch.find_wheel("many", "1.0", python).file for python in tiny.PYTHONS}
    assert names == {
        "3.10": "many-1.0-cp310-cp310-manylinux2014_x86_64.whl",
        "3.11": "many-1.0-1-cp311-cp311-manylinux_2_17_x86_64.whl",
        "3.12": "many-1.0-py3-none-any.whl",
        "3.13": "many-1.0-py3-none-any.whl",
    }


@pytest.mark.parametrize(("package", "version"), [("big", "9.9"), ("bigger", "1.0")])
def test_what_is_not_on_the_index(index: tiny.Index, package: str, version: str) -> None:
    with pytest.raises(NoSolutionError) as caught:
        fetch.find_wheel(package, version, "3.11")
    assert caught.value.exit_code == 2
    assert package in caught.value.why


def test_a_version_for_other_systems_only(index: tiny.Index) -> None:
    index.wheels = [tiny.make_wheel("mac", "1.0", {"m.py": b""}, "py3-none-macosx_11_0_arm64")]
    with pytest.raises(NoSolutionError):
        fetch.find_wheel("mac", "1.0", "3.11")


def test_an_index_that_cannot_be_asked(index: tiny.Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple/")
    with pytest.raises(SurroundingsError, match="could not be asked") as caught:
        fetch.find_wheel("big", "1.0", "3.11")
    assert caught.value.exit_code == 3
    assert "UV_DEFAULT_INDEX" in caught.value.next_step


def test_names_that_leave_the_cache_are_passed_over() -> None:
    wheels = [
        {"url": f"http://h/{name}", "hashes": {"sha256": "0" * 64}}
        for name in ("a-1-py3-none-any.x%2F..%2F..%2Fy.whl", "a-1-py3-none-any.whl")
    ]
    found = fetch.choose_wheel({"name": "a", "version": "1", "wheels": wheels}, "3.11")
    assert found is not None and found.file == "a-1-py3-none-any.whl"
    assert fetch.choose_wheel({"name": "a", "version": "1", "wheels": wheels[:1]}, "3.11") is None
