"""The prompt-cache benchmark runs, its replay counts what it says, bad traces get one sentence. Speed is not tested."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from playground.bench.command import bench_app
from playground.bench.prompt_cache import NO_TRACE, REACH_LENGTH, Row, full_plan
from playground.bench.replay import (
    TraceRequest,
    Workload,
    divisor_for,
    link_turns,
    possible_tokens,
    read_trace,
)
from playground.errors import ConfigError

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def write_trace(folder: Path, text: str) -> Path:
    file = folder / "trace.csv"
    file.write_text(HEADER + text, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("bench")
    lines = [f"2023-11-16 18:15:{i:02}.1234567,{300 + 150 * (i % 3)},{40 + i}\n" for i in range(6)]
    trace = write_trace(folder, "".join(lines))
    options = ["prompt-cache", "--quick", "--trace", str(trace), "--json", str(folder / "cache.json")]
    done = CliRunner().invoke(bench_app, options)
    assert done.exit_code == 0, done.output
    assert "Time to the first token" in done.output and "trace.csv, 6 requests" in done.output
    return json.loads((folder / "cache.json").read_text(encoding="utf-8"))


def test_every_tier_is_measured_in_pairs(data: dict[str, Any]) -> None:
    found = [(row["tier"], row["shared"], len(row["cold"]), len(row["warm"])) for row in data["first_tokens"]]
    assert found == [("pool", 32, 2, 2), ("pool", 64, 2, 2), ("host", 64, 2, 2), ("disk", 64, 2, 2)]
    assert all(min(row["cold"] + row["warm"]) > 0 for row in data["first_tokens"])
    assert data["versions"]["torch"] and data["machine"]["torch_threads"] >= 1 and data["definitions"]


def test_every_tier_gives_the_tokens_of_no_cache(data: dict[str, Any]) -> None:
    assert [line["tier"] for line in data["equality"]] == ["pool", "host", "disk"]
    for line in data["equality"]:
        assert line["identical"] == line["requests"] == 4 and line["cached_tokens"] > 0


def test_the_replay_finds_what_there_is_and_nothing_where_nothing_is_shared(data: dict[str, Any]) -> None:
    rows = {row["scenario"]: row for row in data["replay"]["rows"]}
    assert set(rows) == {"conversations", "system prompt", "nothing shared"}
    for row in rows.values():
        assert row["identical"] == row["requests"] == 6
        assert 0 <= row["cached_tokens"] <= row["possible_tokens"] < row["prompt_tokens"]
        assert row["cached_tokens"] + row["cache_write_tokens"] <= row["prompt_tokens"]
    assert rows["conversations"]["cached_tokens"] == rows["conversations"]["possible_tokens"] > 0
    assert rows["nothing shared"]["possible_tokens"] == rows["nothing shared"]["cached_tokens"] == 0


def test_without_a_trace_it_says_what_to_give() -> None:
    assert "--trace FILE" in NO_TRACE and "TIMESTAMP" in NO_TRACE


def test_the_reach_is_judged_at_its_own_length_only() -> None:
    row = Row("m", "pool", REACH_LENGTH, cold=[1.0, 1.0, 2.0], warm=[0.1, 0.2, 0.1]).to_dict()
    assert (row["ratio"], row["ratio_min"], row["ratio_max"]) == (0.1, 0.05, 0.2)
    assert (row["reach"], row["reached"]) == (0.15, True)
    assert Row("m", "pool", REACH_LENGTH, [1.0], [0.16]).to_dict()["reached"] is False
    assert Row("m", "host", REACH_LENGTH, [1.0], [0.1]).to_dict()["reached"] is None
    assert Row("m", "pool", 512, [1.0], [0.1]).to_dict()["reached"] is None
    assert REACH_LENGTH in full_plan().shared_lengths and "dummy-135m" in full_plan().models


def test_a_request_continues_the_longest_open_one_that_fits() -> None:
    trace = [
        TraceRequest(0, 100, 50),
        TraceRequest(1, 100, 60),
        TraceRequest(2, 170, 10),  # continues the second: 160 of its 170 tokens
        TraceRequest(3, 170, 10),  # the second is continued already: the first
        TraceRequest(4, 1000, 10),  # nothing comes near
        TraceRequest(700, 190, 10),  # the third fits, but it was too long ago
    ]
    assert link_turns(trace) == [None, None, 1, 0, None, None]


def test_lengths_are_divided_until_the_longest_request_fits() -> None:
    assert divisor_for([TraceRequest(0, 900, 123)], 1024) == 1
    assert divisor_for([TraceRequest(0, 900, 124)], 1024) == 2


def test_what_is_possible_is_whole_blocks_of_earlier_sequences_less_the_last_token() -> None:
    trace = [TraceRequest(i, 1, 1) for i in range(4)]
    workload = Workload(trace, 1, [None] * 4, [], 100)
    workload.prompts = {0: [1, 2, 3, 4, 5], 1: [1, 2, 3, 4], 2: [1, 2, 9, 4, 5], 3: [1, 2, 3, 4, 5, 6, 7, 8]}
    replies = {0: [6, 7, 8], 1: [0], 2: [0], 3: [0]}
    # The second leaves its last token to run; the fourth also finds the reply of the first, whose last token has no KV.
    assert possible_tokens(workload, replies, 2) == 0 + 2 + 2 + 6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no request"),
        ("2023-11-16 18:15:46.6805900,374\n", "no request"),
        ("2023-11-16 18:15:46.6805900,many,3\n", "many"),
        ("yesterday,374,3\n", "yesterday"),
        ("2023-11-16 18:15:46.6805900,0,3\n", "without tokens"),
    ],
)
def test_a_trace_that_is_none_gets_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_trace(write_trace(tmp_path, text))
    assert said in str(error.value) and "\n" not in str(error.value) and str(error.value).endswith(".")


def test_a_file_that_is_no_trace_gets_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    for name, said in (
        ("other.csv", "has no column TIMESTAMP"),
        ("binary.csv", "cannot be read"),
        ("no", "No such file"),
    ):
        with pytest.raises(ConfigError, match=said):
            read_trace(tmp_path / name)


def test_a_real_line_of_the_azure_trace_is_read(tmp_path: Path) -> None:
    lines = "2023-11-16 18:15:46.6805900,374,44\r\n2023-11-16 18:15:50.9951690,396,109\r\n"
    first, second = read_trace(write_trace(tmp_path, lines))
    assert first == TraceRequest(0.0, 374, 44)
    assert (second.time, second.prompt, second.reply) == (pytest.approx(4.314579), 396, 109)
