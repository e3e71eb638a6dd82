"""The compare page's handlers over real tiny engines: from the click to the saved comparison, and what goes wrong."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from playground.bench.compare import runner
from playground.bench.compare.plan import Plan, Side
from playground.config import EngineConfig, SpeculationConfig
from playground.sessions import SessionStore
from playground.sessions.run_records import RunQuery
from playground.sessions.run_store import RunStore
from playground.ui.comparing import setup, view
from playground.ui.comparing.handlers import CompareHandlers
from playground.ui.comparing.runs import ComparisonRun
from playground.ui.host import EngineHost
from tests.ui.conftest import event


@pytest.fixture
def compare(host: EngineHost, store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[CompareHandlers]:
    monkeypatch.setattr(runner, "SETTLE_SECONDS", 0.0)
    handlers = CompareHandlers(host, store)
    yield handlers
    handlers.runs.close()


@pytest.fixture
def fields(tiny_model: Path) -> Callable[..., dict[str, Any]]:
    def make(**settings: Any) -> dict[str, Any]:
        base = EngineConfig(model=str(tiny_model), device="cpu", dtype="float32", num_kv_blocks=64)
        ngram = base.replace(speculation=SpeculationConfig(method="ngram"))
        sides = (Side(name="plain", config=base), Side(name="n-gram", config=ngram))
        blind = settings.pop("blind", False)
        values = {"prompts": ("one two", "three"), "repeats": 2, "max_tokens": 8, "ignore_eos": True, **settings}
        return setup.from_plan(Plan(sides=sides, **values), blind=blind)

    return make


async def watch(compare: CompareHandlers, answer: Awaitable[dict[str, Any]]) -> AsyncGenerator[dict[str, Any], None]:
    """What a tab is sent: the answer, then the comparison as it goes on, then the answer with its end."""
    reader = compare.stream.read(lambda: None)
    try:
        view = await answer
        yield view
        number = view["following"]
        while number is not None:
            for told in map(json.loads, reader.take()):
                if told["number"] == number and told["ended"]:
                    yield await compare.ended(event(number=number))
                    return
                if told["number"] == number:
                    yield told["view"]
            await asyncio.sleep(reader.wait or 0.01)
    finally:
        reader.close()


async def collect(compare: CompareHandlers, answer: Awaitable[dict[str, Any]]) -> list[dict[str, Any]]:
    async with aclosing(watch(compare, answer)) as stream:
        return [view async for view in stream]


def test_a_run_is_shown_while_it_goes_and_saved_at_its_end(compare: CompareHandlers, fields: Any) -> None:
    frames = asyncio.run(collect(compare, compare.run(event(**fields()))))
    assert any(frame["running"] for frame in frames[:-1])
    last = frames[-1]
    assert last["running"] is None and last["problem"] is None
    shown = last["result"]
    assert shown["status"] == "done" and shown["n"] == 2
    assert shown["agreement"] == "B is identical to A in 2 of 2"
    assert [column["name"] for column in shown["columns"]] == ["plain", "n-gram"]
    assert [one["id"] for one in last["saved"]] == [shown["id"]]

    opened = asyncio.run(compare.open(event(id=shown["id"])))
    assert opened["result"] == shown and opened["fields"]["sides"] == fields()["sides"]
    for kind, holds in (("json", '"token_ids"'), ("markdown", "| Time to first token |")):
        file = asyncio.run(compare.export(event(id=shown["id"], kind=kind)))["download"]
        assert holds in file["text"] and file["name"].startswith("comparison-")
    assert asyncio.run(compare.remove(event(id=shown["id"])))["saved"] == []
    gone = asyncio.run(compare.open(event(id=shown["id"])))
    assert "no longer exists" in gone["problem"]["text"]


def test_chats_wait_for_the_comparison_and_a_second_one_is_refused(
    compare: CompareHandlers, fields: Any, host: EngineHost
) -> None:
    async def scenario() -> dict[str, Any]:
        async with aclosing(watch(compare, compare.run(event(**fields(repeats=100, max_tokens=200))))) as stream:
            await anext(stream)
            assert host.busy == "A comparison is running"
            refused = await compare.run(event(**fields()))
            assert "A comparison is running" in refused["problem"]["text"]
            late = await compare.load()  # another tab, or this one reloaded
            assert late["following"] is not None and late["running"] is not None
            handle = host.require().submit("hello")
            assert not await asyncio.to_thread(handle.wait, 0.3)
            handle.cancel()
            await compare.stop()
            return [frame async for frame in stream][-1]

    last = asyncio.run(scenario())
    assert last["result"]["status"] == "stopped" and host.busy is None
    assert host.require().generate("hello")[0].finish_reason in ("stop", "length")


def test_a_closed_tab_does_not_end_the_comparison(compare: CompareHandlers, fields: Any, store: SessionStore) -> None:
    async def scenario() -> None:
        assert (await compare.run(event(**fields())))["following"] is not None

    asyncio.run(scenario())
    until = time.monotonic() + 30
    while not store.list_comparisons() and time.monotonic() < until:
        time.sleep(0.05)
    assert len(store.list_comparisons()) == 1


def test_what_cannot_be_is_said_in_place(compare: CompareHandlers, fields: Any) -> None:
    given = fields()
    given["sides"][1]["values"]["max_num_seqs"] = "none"
    frame = asyncio.run(compare.run(event(**given)))
    assert frame["problem"]["side"] == 1 and frame["problem"]["field"] == "max_num_seqs"
    frame = asyncio.run(compare.preset(event(key="<b>")))
    assert "no preset '<b>'" in frame["problem"]["text"]


def test_a_side_that_fails_is_told_in_its_column(compare: CompareHandlers, fields: Any) -> None:
    given = fields()
    given["sides"][1]["values"]["model"] = "/no/such/folder"
    shown = asyncio.run(collect(compare, compare.run(event(**given))))[-1]["result"]
    assert shown["columns"][0]["error"] is None and shown["columns"][0]["outputs"]
    assert "/no/such/folder" in shown["columns"][1]["error"]
    assert shown["table"] and shown["table"][0]["cells"][1] is None


def test_a_blind_comparison_is_decided_once(compare: CompareHandlers, fields: Any, store: SessionStore) -> None:
    hidden = asyncio.run(collect(compare, compare.run(event(**fields(blind=True)))))[-1]["result"]
    assert hidden["hidden"] and hidden["table"] == []
    assert asyncio.run(compare.vote(event(id=hidden["id"], choice="nobody")))["result"]["hidden"]
    told = asyncio.run(compare.vote(event(id=hidden["id"], choice="1")))["result"]
    assert not told["hidden"] and told["vote"] == "1" and told["table"]
    asyncio.run(compare.vote(event(id=hidden["id"], choice="tie")))
    assert store.get_comparison(hidden["id"])[0].vote == "1"


def test_an_empty_page_offers_and_an_own_comparison_starts_from_the_present_engine(
    compare: CompareHandlers, host: EngineHost
) -> None:
    frame = asyncio.run(compare.load())
    assert frame["fields"] is None and frame["result"] is None
    own = asyncio.run(compare.own())
    serving = host.serving
    assert serving is not None
    assert [side["values"]["model"] for side in own["fields"]["sides"]] == [serving.config.model] * 2


def test_a_tab_that_outlived_the_playground_is_told_that_its_comparison_is_lost(compare: CompareHandlers) -> None:
    view = asyncio.run(compare.ended(event(number=5)))
    assert "it is lost" in view["problem"]["text"] and view["following"] is None


def follow(compare: CompareHandlers, given: dict[str, Any]) -> ComparisonRun:
    run = compare.runs.start(setup.read(given), given)
    assert run.wait(60)
    return run


def test_the_run_behind_each_text_can_be_played_and_is_kept_apart_from_the_times_of_chats(
    compare: CompareHandlers, fields: Any, store: SessionStore
) -> None:
    shown = follow(compare, fields()).result
    assert shown is not None
    runs = RunStore(store)
    for column in shown["columns"]:
        for output in column["outputs"]:
            played = runs.run(output["run"])
            own = [token for token in played.recording.tokens if token.request == played.request_engine_id]
            told = [token for token in own if token.position is not None]
            assert "".join(token.text for token in told).startswith(output["same"].rstrip("\ufffd"))
            assert len(told) == 8 and all(token.logprob is not None for token in told)
            assert played.request.prompt in ("one two", "three")  # as it was asked
            assert played.request.origin == "comparison" and played.request.num_output_tokens == 8
    assert runs.find(RunQuery(origin="comparison")).num_found == 4 and runs.find(RunQuery(origin="here")).num_found == 0
    assert runs.find(RunQuery()).latencies.e2e_latency == []


def test_before_a_blind_vote_there_is_no_replay_which_would_tell_the_drafts(
    compare: CompareHandlers, fields: Any
) -> None:
    hidden = follow(compare, fields(blind=True)).result
    assert hidden is not None and all(column["outputs"][0]["run"] is None for column in hidden["columns"])


def test_a_fault_in_what_is_shown_loses_no_measurement(
    compare: CompareHandlers, fields: Any, store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(view, "result", broken)
    assert "cannot be shown" in str(follow(compare, fields()).problem)
    (saved,) = store.list_comparisons()
    record = store.get_comparison(saved.id)[1]["record"]
    assert record["status"] == "done" and [len(side["runs"]) for side in record["sides"]] == [2, 2]
