"""``legacy-cuda bench`` against a stand-in of a server, which misbehaves in every way planted."""

from __future__ import annotations

import _thread
import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from jsonschema import Draft202012Validator
from openai_stub import FAULTS, MODEL, TEMPLATE, Behaviour, Stub, serving, tokens
from test_bench_figures import load_schema

from legacy_cuda.bench import client, drive, machine, runfile, server
from legacy_cuda.cli import main
from legacy_cuda.errors import SurroundingsError, UserError

QUICK = ["--generate", "6", "--repeat", "2", "--requests", "1", "--prompt", "60"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


Outcome = tuple[int, Any, str]


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run ``legacy-cuda bench``: exit code, JSON document, standard error."""

    def call(*arguments: str) -> Outcome:
        code = main(["bench", *arguments, "--json"])
        said = capsys.readouterr()
        return code, json.loads(said.out) if said.out else None, said.err

    return call


def stored(path: str = f"bench-{MODEL}.json") -> Any:
    """A run file, held to its schema."""
    data = json.loads(Path(path).read_text(encoding="utf-8"))
    schema = load_schema("bench-run")
    Draft202012Validator.check_schema(schema)
    assert [error.message for error in Draft202012Validator(schema).iter_errors(data)] == []
    return data


def measured(stub: Stub, generate: int = 6) -> list[Any]:
    """The requests that were not warm-up or calibration."""
    return [body for body in stub.bodies if body["max_tokens"] == generate]


def prompt_of(body: Any) -> str:
    text: str = body["messages"][0]["content"]
    return text


def test_a_sweep(bench: Callable[..., Outcome]) -> None:
    with serving(Behaviour(first_ms=10, gap_ms=4, timings=True, cached=0)) as stub:
        code, said, _ = bench(
            "run", stub.url, *QUICK[:-1], "60,200", "--generate", "20", "--concurrency", "1,3"
        )
        bodies = measured(stub, 20)
    assert code == 0 and said["complete"] and said["schema"] == "legacy-cuda/bench/1"
    assert stub.most == 3 and len(bodies) == 2 * (2 * 1 + 2 * 3)
    assert {body["temperature"] for body in bodies} == {0}
    assert all(body["stream_options"] == {"include_usage": True} for body in bodies)
    points = {(p["prompt"], p["concurrency"]): p for p in said["points"]}
    assert set(points) == {(60, 1), (60, 3), (200, 1), (200, 3)}
    for (prompt, _), point in points.items():
        assert point["prompt_tokens"] == [prompt, prompt] and point["completion_tokens"] == [20, 20]
        assert point["tokens_counted_by"] == ["usage"]
        metrics = {name: value["mean"] for name, value in point["metrics"].items()}
        assert 10 <= metrics["ttft_ms"] < 200  # what was planted, and a slow machine
        assert 4 <= metrics["itl_ms"] * 1.6 < 60
        assert metrics["decode_tokens_per_s"] <= 400 and metrics["tpot_ms"] >= 2.5
    assert Path(said["page"]).read_text(encoding="utf-8").startswith("<!doctype html>")
    data = stored()
    assert data["complete"] and [item["how"] for item in data["sessions"]] == ["complete"]
    first = [(item["number"], item["prompt"], item["concurrency"]) for item in data["rounds"]]
    assert first == sorted(first), "rounds of all points in turns"


def test_no_prompt_is_sent_twice_unless_asked_for(bench: Callable[..., Outcome]) -> None:
    with serving(Behaviour()) as stub:
        bench("run", stub.url, *QUICK, "--concurrency", "2", "--output", "a.json")
        prompts = [prompt_of(body) for body in stub.bodies]
        assert len({text[:30] for text in prompts}) == len(prompts)
        stub.bodies.clear()
        bench("run", stub.url, *QUICK, "--concurrency", "2", "--output", "b.json", "--same-prompt")
        assert len({prompt_of(body) for body in measured(stub)}) == 1


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_request_is_counted_and_the_rest_goes_on(
    bench: Callable[..., Outcome], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "LARGEST_ANSWER", 2 << 20)
    outcome = {
        "503": "http-error",
        "json-error": "server-error",
        "html": "protocol",
        "error-event": "server-error",
        "cut": "broken",
        "no-end": "broken",
        "stall": "stalled",
        "hang": "stalled",
        "huge-line": "protocol",
        "garbage": "protocol",
        "empty": "protocol",
    }[fault]
    # two requests find the length, then come two rounds of two: the second of these fails
    with serving(Behaviour(faults={3: fault})) as stub:
        code, said, _ = bench(
            *("run", stub.url, *QUICK, "--concurrency", "2", "--warmup", "0"),
            *("--stall-timeout", "0.3"),
        )
    (point,) = said["points"]
    assert code == 1 and said["complete"]
    assert point["outcomes"] == {"ok": 3, outcome: 1} and point["problems"]
    assert len(point["metrics"]["output_tokens_per_s"]["rounds"]) == 1
    assert len(point["metrics"]["ttft_ms"]["rounds"]) == 2
    assert any(outcome in text for text in said["warnings"])
    stored()


def test_a_server_that_only_fails(bench: Callable[..., Outcome]) -> None:
    faults = dict.fromkeys(range(2, 1000), "503")
    with serving(Behaviour(faults=faults)) as stub:
        code, said, _ = bench("run", stub.url, *QUICK, "--concurrency", "1,2", "--warmup", "0")
        asked = len(stub.bodies)
    assert code == 1 and not said["complete"] and said["rounds_left"] == 4
    assert asked == 2 + 1 + 2, "each point is tried once"
    assert [point["outcomes"] for point in said["points"]] == [{"http-error": 1}, {"http-error": 2}]
    assert stored()["sessions"][0]["how"] == "failures"


def test_a_request_that_takes_too_long(bench: Callable[..., Outcome]) -> None:
    with serving(Behaviour(gap_ms=100, faults={2: ""})) as stub:
        code, said, _ = bench(
            *("run", stub.url, *QUICK[:2], "--repeat", "1", "--requests", "1", "--prompt", "60"),
            *("--concurrency", "2", "--warmup", "0", "--request-timeout", "0.2"),
        )
        for _ in range(100):
            if stub.running == 0:
                break
            time.sleep(0.02)
        assert stub.running == 0, "the connections were cut"
    assert code == 1 and said["points"][0]["outcomes"] == {"timeout": 2}


def test_the_time_limit_keeps_what_there_is(
    bench: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    # two requests find the length, three rounds of one follow, and in the fourth the time is over
    with serving(Behaviour(faults={5: "stall"})) as stub:
        command = ["run", stub.url, *QUICK, "--concurrency", "1", "--warmup", "0", "--repeat", "6"]
        with monkeypatch.context() as patch:
            patch.setattr(drive.Limits, "over", property(lambda limits: len(stub.bodies) > 5))
            code, said, _ = bench(*command, "--time-limit", "5")
        assert (code, said["complete"], said["rounds_left"]) == (0, False, 3)
        assert said["points"][0]["outcomes"] == {"cancelled": 1, "ok": 3}
        assert stored()["rounds"][-1]["unfinished"] == "time limit"
        code, said, _ = bench(*command)
    assert (code, said["rounds_left"], said["points"][0]["rounds"]) == (0, 0, 6)
    data = stored()
    assert [item["how"] for item in data["sessions"]] == ["time limit", "complete"]
    assert sum(1 for item in data["rounds"] if not item["unfinished"]) == 6


def test_the_time_of_a_session_is_measured() -> None:
    with serving(Behaviour(fault="hang")) as stub:
        one = exchange(stub, stall=60)
        begin = time.monotonic()
        drive.together([[one, exchange(stub)]], drive.Limits(60, 60, begin + 0.2))
        assert 0.2 <= time.monotonic() - begin < 10
    assert one.raw.ending == "cancelled" and len(stub.bodies) == 1


def test_a_finished_run_is_not_measured_again_but_gets_more_rounds(
    bench: Callable[..., Outcome],
) -> None:
    with serving(Behaviour()) as stub:
        command = ["run", stub.url, *QUICK, "--concurrency", "1"]
        bench(*command)
        before = Path(f"bench-{MODEL}.json").read_bytes()
        asked = len(stub.bodies)
        code, said, _ = bench(*command)
        assert (code, said["complete"], len(stub.bodies)) == (0, True, asked)
        assert Path(f"bench-{MODEL}.json").read_bytes() == before
        _, said, _ = bench(*command, "--repeat", "4")
        assert said["points"][0]["rounds"] == 4
        code, said, error = bench(*command, "--generate", "7")
        assert code == 2 and "generate: 6 before, 7 now" in error and "--output" in error


def test_a_server_that_goes_away(bench: Callable[..., Outcome]) -> None:
    with serving(Behaviour()) as stub:
        bench("run", stub.url, *QUICK, "--concurrency", "1")
        url = stub.url
    code, _, error = bench("run", url, *QUICK, "--concurrency", "1", "--repeat", "3")
    assert code == 3 and "does not answer" in error


def test_a_server_that_goes_away_while_it_is_measured(
    bench: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any) -> Any:
        raise ConnectionRefusedError("refused")

    with serving(Behaviour(faults=dict.fromkeys(range(3, 99), "cut"))) as stub:
        plain = client.ask

        def ask(place: Any, method: str, path: str, *more: Any) -> Any:
            return (gone if len(stub.bodies) > 3 else plain)(place, method, path, *more)

        monkeypatch.setattr(client, "ask", ask)
        code, said, error = bench("run", stub.url, *QUICK, "--concurrency", "1", "--warmup", "0")
    assert code == 3 and said["points"][0]["outcomes"] == {"broken": 1, "ok": 1}
    assert "does not answer" in error and "is kept" in error
    assert stored()["sessions"][0]["how"] == "unreachable"


# --------------------------------------------------------------------- counting and lengths


def test_without_usage_lengths_are_tokenizes_and_speeds_are_not_made_up(
    bench: Callable[..., Outcome],
) -> None:
    with serving(Behaviour(usage=False, tokenize=True)) as stub:
        _, said, _ = bench("run", stub.url, *QUICK, "--concurrency", "1")
        assert {tokens(prompt_of(body)) for body in measured(stub)} == {60}
    (point,) = said["points"]
    assert said["prompts_counted_by"] == "tokenize" and point["tokens_counted_by"] == ["none"]
    assert set(point["metrics"]) == {"ttft_ms", "itl_ms", "latency_ms"}
    assert any("no token counts" in text for text in said["warnings"])
    assert any("without the chat template" in text for text in said["warnings"])


def test_with_nothing_to_count_by_it_says_so(bench: Callable[..., Outcome]) -> None:
    with serving(Behaviour(usage=False)) as stub:
        _, said, _ = bench("run", stub.url, *QUICK, "--concurrency", "1")
    assert said["prompts_counted_by"] == "none"
    assert any("not known" in text for text in said["warnings"])


def test_the_servers_timings_count_where_there_is_no_usage(bench: Callable[..., Outcome]) -> None:
    with serving(Behaviour(usage=False, timings=True, per_prompt_token_us=100)) as stub:
        _, said, _ = bench("run", stub.url, *QUICK, "--concurrency", "1")
    (point,) = said["points"]
    assert (point["tokens_counted_by"], point["prompt_tokens"]) == (["timings"], [60, 60])
    # 2 ms, and 100 us for each of 60 tokens
    assert point["metrics"]["server_prefill_tokens_per_s"]["mean"] == pytest.approx(60 / 0.008)


def test_tokens_from_a_cache_are_told(bench: Callable[..., Outcome]) -> None:
    with serving(Behaviour(cached=40, first_ms=20)) as stub:
        _, said, _ = bench("run", stub.url, *QUICK, "--concurrency", "1")
    assert said["points"][0]["cached_tokens_most"] == 40
    assert any("cache" in text for text in said["warnings"])
    assert said["points"][0]["metrics"]["prefill_tokens_per_s"]["mean"] <= 20 / 0.02


def test_answers_that_end_early_and_pieces_of_many_tokens(bench: Callable[..., Outcome]) -> None:
    with serving(Behaviour(stop_after=4, tokens_per_chunk=2)) as stub:
        _, said, _ = bench("run", stub.url, *QUICK, "--concurrency", "1")
    assert said["points"][0]["short_answers"] == 2
    assert any("ended before" in text for text in said["warnings"])
    assert any("several tokens" in text for text in said["warnings"])


def test_a_prompt_that_the_server_cuts_is_told(bench: Callable[..., Outcome]) -> None:
    with serving(Behaviour(cut=120)) as stub:
        _, said, _ = bench("run", stub.url, *QUICK[:-1], "400", "--concurrency", "1")
        assert {tokens(prompt_of(body)) for body in measured(stub)} == {400 - TEMPLATE}
    assert said["points"][0]["prompt_tokens"] == [120, 120]
    assert any("as long as asked" in text for text in said["warnings"])


def test_completions(bench: Callable[..., Outcome]) -> None:
    with serving(Behaviour()) as stub:
        code, said, _ = bench("run", stub.url, *QUICK, "--concurrency", "1", "--api", "completions")
        assert all(isinstance(body["prompt"], str) for body in stub.bodies)
    assert code == 0 and said["points"][0]["prompt_tokens"] == [60, 60]


def test_fields_of_requests(bench: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "secret-7")
    extra = json.dumps({"seed": 7, "temperature": 0.5})
    with serving(Behaviour()) as stub:
        command = ["run", stub.url, *QUICK, "--concurrency", "1", "--extra", extra]
        bench(*command, "--no-ignore-eos", "--key-env", "SOME_KEY", "--note", "cold")
        assert all(b["seed"] == 7 and b["temperature"] == 0.5 for b in stub.bodies)
        assert not any("ignore_eos" in body for body in stub.bodies)
        assert set(stub.keys) == {"Bearer secret-7"}
    assert "secret-7" not in Path(f"bench-{MODEL}.json").read_text()
    assert stored()["settings"]["note"] == "cold"


# ------------------------------------------------------------------- refused, with a way out


def test_refusals(bench: Callable[..., Outcome]) -> None:
    with serving(Behaviour(strict=True, context=100, props=True)) as stub:
        url = stub.url
        for arguments, words in (
            (["run", url, *QUICK], ["ignore_eos", "--no-ignore-eos"]),
            (["run", url, "--prompt", "95", "--generate", "6"], ["100 tokens", "fits"]),
            (["run", url, *QUICK, "--model", "other"], ["'other'", MODEL]),
            (["run", url, *QUICK, "--key-env", "NOT_SET_7"], ["NOT_SET_7"]),
            (["run", url, *QUICK, "--concurrency", "2000"], ["2000"]),
            (["run", url, *QUICK, "--output", "x.html"], ["name of the page", "x.json"]),
            (["run", "ftp://h/x"], ["address"]),
            (["run", "http://h:99999"], ["address"]),
            (["run", "u:p@h/"], ["password"]),
            (["run", f"{url}/v7", *QUICK], ["names no model", "/v1"]),
            (["run", url, *QUICK, "--output", "no/folder/x.json"], ["cannot be written"]),
            (["run", url, "--no-ignore-eos", "--prompt", "3", "--generate", "6"], ["template"]),
            (["show", "none.json"], ["no file none.json"]),
            (["compare", "none.json", "other.json"], ["no file none.json"]),
        ):
            code, said, error = bench(*arguments)
            assert code == 2, (arguments, error)
            assert said["schema"] == "legacy-cuda/error/1"
            assert all(word in error for word in words), error
    assert list(Path().glob("*.json")) == []
    code, _, error = bench("run", url, *QUICK)
    assert code == 3 and "does not answer" in error and "start it" in error


def test_points_that_do_not_fit_are_skipped(bench: Callable[..., Outcome]) -> None:
    with serving(Behaviour(context=100, props=True, slots=2)) as stub:
        arguments = [*QUICK[:-1], "60,500", "--concurrency", "1,3"]
        code, said, _ = bench("run", stub.url, *arguments)
        assert stub.most == 3
    assert code == 0 and said["complete"]
    assert [point["prompt"] for point in said["skipped"]] == [500, 500]
    assert [point["prompt"] for point in said["points"]] == [60, 60]
    assert said["server"]["slots"] == 2 and said["server"]["model_file"] == "stand-in.gguf"
    assert any("computes 2 requests at once" in text for text in said["suggestions"])
    stored()


def test_a_damaged_run_is_no_run(bench: Callable[..., Outcome]) -> None:
    with serving(Behaviour()) as stub:
        bench("run", stub.url, *QUICK, "--concurrency", "1", "--repeat", "1")
    good = stored()

    def damage(data: Any, path: tuple[Any, ...]) -> None:
        for part in path[:-1]:
            data = data[part]
        if isinstance(data[path[-1]], (int, float)):
            data[path[-1]] = "x"
        else:
            del data[path[-1]]

    for path in (
        ("rounds",),
        ("server", "engine"),
        ("machine", "gpus"),
        ("prompts", "counted_by"),
        ("settings", "repeat"),
        ("settings", "note"),
        ("rounds", 0, "seconds"),
        ("rounds", 0, "requests", 0, "outcome"),
        ("rounds", 0, "requests", 0, "ttft_ms"),
        ("rounds", 0, "requests", 0, "gaps_ms", 0),
        ("rounds", 0, "requests", 0, "prompt_tokens"),
    ):
        bad = json.loads(json.dumps(good))
        damage(bad, path)
        Path("x.json").write_text(json.dumps(bad))
        with pytest.raises(UserError, match="no run"):
            runfile.read(Path("x.json"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": "legacy-cuda/bench-run/1"}', "\xff{"])
def test_files_that_are_no_run(bench: Callable[..., Outcome], text: str) -> None:
    Path("x.json").write_bytes(text.encode("latin-1"))
    code, _, error = bench("show", "x.json")
    assert code == 2 and "no run" in error


def test_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["--prompt", "0"],
        ["--prompt", "1,,2"],
        ["--concurrency", "-1"],
        ["--extra", "[]"],
        ["--extra", "{"],
        ["--time-limit", "nan"],
        ["--stall-timeout", "soon"],
    ):
        with pytest.raises(SystemExit) as stop:
            main(["bench", "run", "http://127.0.0.1:1", *arguments])
        assert stop.value.code == 2
        assert "Traceback" not in capsys.readouterr().err


def test_two_runs_at_once_on_one_file(bench: Callable[..., Outcome]) -> None:
    with serving(Behaviour()) as stub, runfile.exclusive(Path("x.json")):
        code, _, error = bench("run", stub.url, *QUICK, "--output", "x.json")
    assert code == 3 and "another legacy-cuda" in error


# ----------------------------------------------------------------------- stopped and killed


def start(stub: Stub, *arguments: str) -> subprocess.Popen[str]:
    command = [*tiny.command(), "bench", "run", stub.url, *QUICK, "--concurrency", "2", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to that")


def test_control_c_keeps_what_was_measured(bench: Callable[..., Outcome]) -> None:
    # after the two that find the length: a round of two, then two that hang
    with serving(Behaviour(faults={4: "stall", 5: "stall"})) as stub:
        process = start(stub, "--warmup", "0")
        wait_for(lambda: len(stub.bodies) == 6)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
        assert process.returncode == 130, (out, error)
        assert "the same command goes on" in error and "Traceback" not in error
        assert "left      1 rounds" in out and "2 cancelled" in out, out
        data = stored()
        assert [item["unfinished"] for item in data["rounds"]] == ["", "interrupted"]
        wait_for(lambda: stub.running == 0)
        code, said, _ = bench("run", stub.url, *QUICK, "--concurrency", "2", "--warmup", "0")
    assert said["complete"] and said["points"][0]["outcomes"] == {"cancelled": 2, "ok": 4}
    assert said["points"][0]["rounds"] == 2 and code == 0


def test_a_killed_run_goes_on(bench: Callable[..., Outcome]) -> None:
    with serving(Behaviour(faults={4: "hang", 5: "hang"})) as stub:
        process = start(stub, "--warmup", "0")
        wait_for(lambda: len(stub.bodies) == 6)
        process.kill()
        process.communicate(timeout=60)
        assert [item["number"] for item in stored()["rounds"]] == [0]
        code, said, _ = bench("run", stub.url, *QUICK, "--concurrency", "2", "--warmup", "0")
    assert (code, said["complete"], said["points"][0]["rounds"]) == (0, True, 2)


# ------------------------------------------------------------------------------ comparisons


def test_show_and_compare(
    bench: Callable[..., Outcome], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, gap in (("slow", 60), ("fast", 8)):
        with serving(Behaviour(gap_ms=gap)) as stub:
            command = ["run", stub.url, *QUICK, "--concurrency", "1", "--repeat", "3"]
            bench(*command, "--output", f"{name}.json")
    code, said, _ = bench("compare", "slow.json", "fast.json")
    found = {row["metric"]: row for row in said["rows"]}
    assert found["decode_tokens_per_s"]["verdict"] == "better"
    assert code == int(any(row["verdict"] == "worse" for row in said["rows"]))  # of a busy machine
    assert 1.5 < found["decode_tokens_per_s"]["ratio"] < 8
    assert any("url" in text for text in said["differences"])
    code, _, _ = bench("compare", "fast.json", "slow.json")
    assert code == 1
    code, said, _ = bench("compare", "slow.json", "slow.json")
    assert code == 0
    assert {row["verdict"] for row in said["rows"]} == {"no difference seen"}
    expected = {
        "schema": "legacy-cuda/bench-expectation/1",
        "points": [
            {
                **{"prompt": 60, "generate": 6, "concurrency": 1},
                "metrics": {"decode_tokens_per_s": {"low": 1000, "high": 2000}},
            }
        ],
    }
    Path("plan.json").write_text(json.dumps(expected))
    code, said, _ = bench("compare", "slow.json", "plan.json")
    assert code == 1 and said["rows"][0]["verdict"] == "worse than expected"
    for arguments in (["compare", "slow.json", "fast.json"], ["compare", "slow.json", "plan.json"]):
        main(["bench", *arguments])
    text = capsys.readouterr().out
    assert "B/A" in text and "by chance" in text and "worse than expected" in text
    assert main(["bench", "show", "slow.json"]) == 0
    assert "decode tok/s" in capsys.readouterr().out


def test_runs_without_a_point_in_common(bench: Callable[..., Outcome]) -> None:
    with serving(Behaviour()) as stub:
        for count in ("1", "2"):
            bench("run", stub.url, *QUICK, "--concurrency", count, "--output", f"{count}.json")
    code, _, error = bench("compare", "1.json", "2.json")
    assert code == 2 and "pp60 tg6 c1" in error and "pp60 tg6 c2" in error


# ---------------------------------------------------------------- addresses, server, machine


@pytest.mark.parametrize(
    ("text", "scheme", "rest", "local"),
    [
        ("127.0.0.1:8080", "http", "127.0.0.1:8080/v1", True),
        ("localhost", "http", "localhost:80/v1", True),
        ("h:8080/v1/", "http", "h:8080/v1", False),
        ("https://h/api/v1", "https", "h:443/api/v1", False),
        ("http://h/v1/chat/completions", "http", "h:80/v1", False),
        ("[::1]:8080", "http", "[::1]:8080/v1", True),
        ("10.0.0.1:1", "http", "10.0.0.1:1/v1", False),
    ],
)
def test_addresses(text: str, scheme: str, rest: str, local: bool) -> None:
    place = client.endpoint(text)
    assert (place.url, place.local) == (f"{scheme}://{rest}", local)
    assert client.endpoint(place.url) == place


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({}, (None, None, None, None)),
        ({"/props": {"x": 1}}, (None, None, None, None)),
        (
            {"/props": {"build_info": "b7", "total_slots": 4, "default_generation_settings": 3}},
            ("llama-server", "b7", None, 4),
        ),
        ({"/version": {"version": "0.14.0"}}, ("vllm", "0.14.0", None, None)),
        ({"/api/version": {"version": "0.9"}}, ("ollama", "0.9", None, None)),
        (
            {"/get_server_info": {"version": "0.5", "context_length": 4096}},
            ("sglang", "0.5", 4096, None),
        ),
    ],
)
def test_what_servers_say(answers: dict[str, Any], expected: tuple[Any, ...]) -> None:
    found = server.read("m", {"data": [{"id": "m"}]}, answers.get)
    assert (found.engine, found.version, found.context, found.slots) == expected


def test_vllm_says_its_context_with_its_model() -> None:
    listed = {"data": [{"id": "x", "max_model_len": 1}, {"id": "m", "max_model_len": 2048}]}
    assert server.read("m", listed, lambda path: None).context == 2048


@pytest.mark.parametrize(
    ("listed", "error"),
    [
        ((200, {"data": [{"id": "a"}, {"id": "b"}]}), UserError),
        ((200, {"data": []}), UserError),
        ((200, None), UserError),
        ((404, {"error": "x"}), UserError),
        ((401, None), UserError),
        (OSError("refused"), SurroundingsError),
    ],
)
def test_servers_that_name_no_single_model(
    monkeypatch: pytest.MonkeyPatch, listed: Any, error: type[UserError]
) -> None:
    def ask(*_: Any) -> Any:
        if isinstance(listed, OSError):
            raise listed
        return listed

    monkeypatch.setattr(client, "ask", ask)
    with pytest.raises(error):
        server.ask(client.endpoint("127.0.0.1:1"), None)


def test_the_machine(tmp_path: Path) -> None:
    proc, device = tmp_path / "proc", tmp_path / "sys" / "0000:03:00.0"
    (proc / "driver" / "nvidia").mkdir(parents=True)
    (proc / "driver" / "nvidia" / "version").write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23\nGCC version: 12.2.0"
    )
    (proc / "cpuinfo").write_text("processor : 0\nmodel name\t: A CPU @ 2 GHz\n")
    device.mkdir(parents=True)
    for name, text in (("vendor", "0x10de"), ("class", "0x030200"), ("device", "0x1b38")):
        (device / name).write_text(text + "\n")
    found = machine.facts(True, proc, tmp_path / "sys")
    assert (found["gpus"], found["driver"], found["cpu"]) == (["p40"], "580.95.05", "A CPU @ 2 GHz")
    found = machine.facts(False, proc, tmp_path / "sys")
    assert (found["gpus"], found["driver"], found["of"]) == (None, None, "client")
    found = machine.facts(True, tmp_path / "none", tmp_path / "none")
    assert found["gpus"] is None and found["gpus_unknown"] and found["driver"] is None


# ------------------------------------------------------------------------------- the client


def exchange(stub: Stub, tokens: int = 6, stall: float = 5) -> client.Exchange:
    body = {"messages": [{"content": "a"}], "max_tokens": tokens, "stream": True}
    return client.Exchange(client.endpoint(stub.url), "/chat/completions", body, stall)


def test_requests_start_together_and_in_rows() -> None:
    with serving(Behaviour(first_ms=100)) as stub:
        workers = [[exchange(stub), exchange(stub)] for _ in range(5)]
        drive.together(workers, drive.Limits(60, 60))
        assert stub.most == 5 and len(stub.bodies) == 10
    for first, second in workers:
        assert first.raw.ending == second.raw.ending == "end"
        assert first.raw.sent < first.raw.ended <= second.raw.sent
    firsts = [first.raw.sent for first, _ in workers]
    assert max(firsts) - min(firsts) < 100e6


@pytest.mark.parametrize("moment", ["before", "while it hangs", "while it streams", "after"])
def test_an_exchange_can_be_cut_off_at_any_moment(moment: str) -> None:
    fault = {"while it hangs": "hang", "while it streams": "stall"}.get(moment, "")
    with serving(Behaviour(fault=fault)) as stub:
        one = exchange(stub, stall=30)
        thread = threading.Thread(target=one.perform)
        if moment == "before":
            one.abort("cancelled")
        thread.start()
        if moment.startswith("while"):
            wait_for(lambda: stub.running == 1)
            time.sleep(0.05)
            one.abort("cancelled")
        thread.join(10)
        assert not thread.is_alive()
        one.abort("timeout")
        wait_for(lambda: stub.running == 0)
    assert one.raw.ending == ("end" if moment == "after" else "cancelled")
    assert len(stub.bodies) == (0 if moment == "before" else 1)


def test_an_interruption_waits_until_all_are_cut_off() -> None:
    with serving(Behaviour(fault="stall")) as stub:
        workers = [[exchange(stub, stall=60)] for _ in range(8)]
        timer = threading.Thread(
            target=lambda: (wait_for(lambda: stub.running == 8), _thread.interrupt_main())
        )
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            drive.together(workers, drive.Limits(60, 60))
        assert {one.raw.ending for (one,) in workers} == {"cancelled"}
        timer.join()


def test_nobody_listens() -> None:
    with serving(Behaviour()) as stub:
        pass
    one = exchange(stub)
    assert one.perform().ending == "no-connection" and one.raw.problem


def test_the_stand_in_as_a_program(tmp_path: Path) -> None:
    path = Path(__file__).with_name("openai_stub.py")
    process = subprocess.Popen(
        [sys.executable, str(path), "--stamps"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        status, listed = client.ask(
            client.endpoint(f"127.0.0.1:{process.stdout.readline().strip()}"), "GET", "/v1/models"
        )
        assert (status, listed["data"][0]["id"]) == (200, MODEL)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
    assert TEMPLATE + tokens("two words 12") == 9
