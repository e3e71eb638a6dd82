"""Hostile text in every place where text appears: it is read there as it is, and nothing of it is run.

The database is filled before the app starts: what a user, a model, a file or a path may bring is there from the first
look at each page on.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from playground.bench.compare.alignment import align
from playground.sessions import SessionStore
from playground.telemetry.token_trace import TracedToken, pack
from playground.ui.comparing import setup
from playground.ui.lab.results import SHIPPED
from playground.ui.tours import TOURS
from tests.bench.compare.records import output, record, run, side
from tests.tiny import write_tiny_model
from tests.ui.browser import Tab, chromium, served

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

HOSTILE = "<img src=x onerror=window.pwned=1>${window.pwned=1}{{v}}"
"""Short enough for a title, without a slash for a folder's name, and nothing in it is Markdown."""
LONGER = f"{HOSTILE}</script><script>window.pwned=1</script>"


def fill_store(path: Path) -> None:
    """A chat and a comparison whose every text is hostile."""
    with SessionStore(path) as store:
        chat = store.create_chat(HOSTILE, system_prompt=LONGER)
        question = store.append_user_message(chat.id, parent_id=None, text=LONGER)
        token = TracedToken(5, LONGER, "corrected", 1, 1.0, -0.5, (HOSTILE,), ((HOSTILE, -0.5),))
        metrics = {"tokens": pack([token]), "error": LONGER, "finish_reason": LONGER, "num_output_tokens": 1}
        store.append_reply(
            chat.id,
            parent_id=question.id,
            text=LONGER,
            status="stopped",
            metrics={**metrics, "num_draft_tokens": 2, "num_accepted_tokens": 0},
            config={"model": HOSTILE},
            params={"stop": [HOSTILE]},
        )
        texts = [output(LONGER + end, [LONGER, end]) for end in "!?"]
        parted = {**align(*texts, same_vocabulary=True), "logprobs": [[-0.7, -0.9], [-0.9, -0.8]]}
        sides = [side(HOSTILE, [text], [run(0, time_per_output_token=0.01)]) for text in texts]
        sides[1]["error"] = LONGER
        fields = setup.of_preset("speculation") | {"preset": None, "prompt_set": "own", "prompts": LONGER}
        for one in fields["sides"]:
            one["name"] = HOSTILE
        store.save_comparison(HOSTILE, {"record": record(sides, [[], [parted]]), "setup": fields})


def hostile_run(path: Path) -> None:
    """A run to import: a shipped one with hostile text in every field that is a text of one's own."""
    shipped = sorted(TOURS.glob("*.zst"))[0]
    with zstandard.ZstdDecompressor().stream_reader(shipped.read_bytes()) as reader:
        content = json.loads(reader.read())
    content["facts"]["model"] = content["request"]["model"] = HOSTILE
    content["request"]["prompt"] = LONGER
    content["environment"] = {"machine": HOSTILE, "summary": HOSTILE}
    content["config"] |= {"device": HOSTILE, "dtype": HOSTILE, "kv_cache": HOSTILE}
    for token in content["tokens"]:
        token[4] = HOSTILE
    for caption in content["tour"]["captions"]:
        caption["text"] = LONGER
    path.write_bytes(zstandard.ZstdCompressor().compress(json.dumps(content).encode()))


def hostile_result(folder: Path) -> None:
    """A benchmark's result whose names and notes are hostile."""
    folder.mkdir()
    data = json.loads((SHIPPED / "engine-cpu.json").read_text())
    data["versions"] = data["machine"] = {"torch": HOSTILE, "commit": HOSTILE, "processor": HOSTILE}
    data["definitions"] = {HOSTILE: LONGER}
    data["lab"] = {"what": HOSTILE}
    for row in data["rows"]:
        row |= {key: HOSTILE for key, value in row.items() if isinstance(value, str)}
    (folder / "20260102-030405-engine.json").write_text(json.dumps(data))
    (folder / "20260102-030406-other.json").write_text(json.dumps({"benchmark": HOSTILE, "lab": {"what": LONGER}}))


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    folder = tmp_path_factory.mktemp("served")
    fill_store(folder / "chats.sqlite")
    hostile_run(folder / "hostile.run.json.zst")
    hostile_result(folder / "benchmarks")
    model = folder / HOSTILE
    model.mkdir()
    write_tiny_model(model)
    (folder / "more").mkdir()
    shutil.copytree(model, folder / "more" / HOSTILE)
    with chromium() as browser, served(folder, "--model", str(model), "--device", "cpu", "--dtype", "float32") as app:
        tab = Tab(browser, app.address)
        tab.folder = folder  # type: ignore[attr-defined]
        yield tab
        tab.close()
        assert tab.problems == []


@pytest.fixture(autouse=True)
def nothing_was_run(tab: Tab) -> Iterator[None]:
    yield
    tab.page.evaluate(  # every tooltip is drawn too
        """() => { for (const node of document.querySelectorAll('#page [data-tip]'))
          node.dispatchEvent(new PointerEvent('pointerover', { bubbles: true })); }"""
    )
    assert tab.page.locator("#page img, #page script, .tip img, .tip script, [onerror]").count() == 0
    assert tab.page.evaluate("window.pwned") is None


def go(tab: Tab, path: str, ready: str) -> Any:
    """A page whose `ready` has text; returns what the page says."""
    tab.page.evaluate("path => { location.hash = path; }", path)
    tab.page.locator(ready).first.wait_for()
    return tab.page.locator("#page").inner_text()


def test_the_models_name_and_the_chats_title(tab: Tab) -> None:
    assert HOSTILE in tab.page.locator("#topbar .about").inner_text()
    assert f"{HOSTILE} is" in tab.page.locator("#composer .caption").inner_text()
    assert HOSTILE in tab.page.locator("#transcript .empty").inner_text()
    assert tab.sessions.all_inner_texts() == [HOSTILE]


def test_a_chats_texts_its_tokens_and_its_system_prompt(tab: Tab) -> None:
    tab.sessions.first.click()
    tab.replies.last.wait_for()
    assert tab.questions.all_inner_texts() == [LONGER] and tab.reply_text() == LONGER
    assert f"Stopped here: {LONGER}" in tab.replies.last.inner_text()
    assert tab.page.title().startswith(HOSTILE)
    assert tab.page.locator("#setting-system").input_value() == LONGER
    for key in ("Alt+2", "Alt+3", "Alt+4"):
        tab.page.keyboard.press(key)
        tab.replies.last.locator(".t").hover()
        assert HOSTILE in tab.page.get_by_role("tooltip").inner_text()
    tab.page.keyboard.press("Alt+1")


def test_the_search_and_the_notice_of_a_deletion(tab: Tab) -> None:
    tab.page.keyboard.press("Control+k")
    tab.page.keyboard.type(LONGER + " nowhere")
    assert LONGER in tab.page.locator("#sessions .none", has_text="nowhere").inner_text()
    tab.page.keyboard.press("Control+a")
    tab.page.keyboard.type("onerror")
    tab.sessions.first.wait_for()
    assert tab.sessions.all_inner_texts() == [HOSTILE]
    tab.page.keyboard.press("Escape")
    tab.page.locator("#sessions .session").first.hover()
    tab.page.get_by_role("button", name="Delete").first.click()
    bar = tab.page.locator(".undo-bar")
    bar.wait_for()
    assert bar.locator("[title]").get_attribute("title") == HOSTILE
    bar.get_by_role("button", name="Undo").click()
    tab.sessions.first.wait_for()


def test_a_comparisons_names_texts_and_refusals(tab: Tab) -> None:
    go(tab, "compare", ".compare .card")
    tab.page.locator(".compare").get_by_role("button", name=HOSTILE).first.click()
    columns = tab.page.locator(".compare .col")
    columns.nth(1).wait_for()
    assert LONGER in columns.first.inner_text() and HOSTILE in columns.first.locator("h2").inner_text()
    assert LONGER in columns.nth(1).locator(".problem").inner_text()
    assert HOSTILE in tab.page.locator(".compare .asked").inner_text()
    columns.first.get_by_role("button", name="Settings").click()
    columns.first.locator("summary", has_text="Scheduling").click()
    columns.first.get_by_label("Requests at once").fill(HOSTILE)
    tab.page.locator(".compare .bar").get_by_role("button", name="Run again").click()
    tab.page.locator(".compare .wrap > .problem", has_text="<img").wait_for()


def test_an_imported_run_and_its_place_in_the_list(tab: Tab) -> None:
    go(tab, "requests", "#runs input[type=file]")
    runs = tab.page.locator("#runs")
    runs.locator("input[type=file]").set_input_files(tab.folder / "hostile.run.json.zst")  # type: ignore[attr-defined]
    runs.get_by_text("from an imported file").wait_for()
    assert HOSTILE in runs.locator(".recorded").inner_text()
    assert LONGER in runs.locator(".spoken .prompt").inner_text()
    tab.page.locator("#runs .head h2").click()
    tab.page.keyboard.press("End")
    runs.locator(".tokens .token", has_text=HOSTILE).first.wait_for()
    go(tab, "requests", "#runs .list tbody tr")
    assert HOSTILE in runs.locator(".list tbody tr").first.inner_text()
    runs.locator("input[type=search]").fill(LONGER)
    runs.get_by_text("No request is like that").or_(runs.locator(".list tbody tr").first).first.wait_for()


def test_a_tours_captions(tab: Tab) -> None:
    go(tab, "requests/tour/prefill-and-decode", "#runs .captions li")
    show = """([text]) => {
        const plain = window.fetch;
        window.fetch = async (...asked) => {
          const answer = await plain(...asked);
          if (!String(asked[0]).includes('runs/tours')) return answer;
          const value = await answer.json();
          if (value.tour) { value.tour.title = text; for (const one of value.tour.captions) one.text = text; }
          return new Response(JSON.stringify(value), { headers: { 'Content-Type': 'application/json' } });
        };
    }"""
    tab.page.evaluate(show, [LONGER])
    go(tab, "requests", "#runs .list tbody tr")
    go(tab, "requests/tour/prefill-and-decode", "#runs .captions li")
    tab.page.locator("#runs .captions li", has_text=LONGER).first.wait_for()


def test_a_results_names_machine_and_definitions(tab: Tab) -> None:
    go(tab, "lab/result/20260102-030405-engine", ".lab .result h2")
    result = tab.page.locator(".lab .result")
    result.locator("table").first.wait_for()
    assert HOSTILE in result.inner_text()
    assert HOSTILE in tab.page.locator(".lab .index").inner_text()
    result.locator("summary", has_text="Definitions").click()
    assert LONGER in result.locator("dl").inner_text()
    go(tab, "lab/result/20260102-030406-other", ".lab .result h2")
    result.get_by_text(LONGER).first.wait_for()


def test_a_models_path_in_the_list_in_the_form_and_in_a_refusal(tab: Tab) -> None:
    go(tab, "models", "#models section")
    page = tab.page
    now, load, known = (
        page.locator(f"#models section[aria-label='{title}']")
        for title in ("Loaded now", "Load a model", "On this machine")
    )
    assert HOSTILE in now.inner_text()
    known.locator("#model-folder").fill(f"/no/{LONGER}")
    known.get_by_role("button", name="Add", exact=True).click()
    assert HOSTILE in known.get_by_text("there is no such folder or file").inner_text()
    known.locator("#model-folder").fill(str(tab.folder / "more"))  # type: ignore[attr-defined]
    known.get_by_role("button", name="Add", exact=True).click()
    known.get_by_role("button", name=HOSTILE, exact=True).click()
    load.get_by_text(f"What {HOSTILE} needs").wait_for()
    load.get_by_label("Model", exact=True).fill(LONGER)
    load.locator(".problem, .hint", has_text="<img").first.wait_for()
