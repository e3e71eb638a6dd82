"""The page in a real browser, with the real app behind it, from the first send to SIGTERM."""

import re

import pytest

from tests.ui.browser import NewTab
from tests.ui.endless import ENDLESS, LONG, ODD, SHORT

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

HOSTILE = (
    "<img src=x onerror=window.__pwned=1> ${window.__pwned=1} {{value}} </script><script>window.__pwned=1</script>"
)


def test_the_page_says_what_it_is_and_offers_a_start(new_tab: NewTab) -> None:
    tab = new_tab()
    assert tab.page.title() == "Inference Playground"
    page = tab.page.locator("#page").inner_text()
    assert "tiny model" in page and "no facts" in page
    assert "storyteller-test" in page and "CPU" in page and "kernels: torch" in page
    tab.wait_tile("KV blocks in use", "0")
    tab.wait_tile("Accepted drafts", "—")
    tab.set(SHORT)
    tab.page.get_by_role("button", name="Who are you?").click()
    tab.replies.last.wait_for()
    assert tab.questions.all_inner_texts() == ["Who are you?"]
    assert tab.page.title() == "Who are you? · Inference Playground"


def test_a_reply_streams_in_place_and_ends_with_its_figures(new_tab: NewTab) -> None:
    tab = new_tab()
    tab.set({**LONG, "max_tokens": "300"})
    tab.page.evaluate(
        """() => { window.__lengths = new Set(); window.__node = document.querySelector('#live .message');
        new MutationObserver(() => window.__lengths.add(document.querySelector('#live .text').textContent.length))
          .observe(document.querySelector('#live'), {subtree: true, childList: true, characterData: true}); }"""
    )
    tab.send("Tell me a story.")
    tab.wait_streaming(1)
    assert tab.page.get_by_role("button", name="Stop the reply").is_visible()
    tab.replies.last.wait_for()
    assert len(tab.page.evaluate("[...window.__lengths]")) >= 3, "the reply came in one piece"
    assert tab.page.evaluate("window.__node.isConnected"), "the live view was mounted anew"
    assert not tab.page.locator("#live .message").is_visible()
    figures = tab.replies.last.locator(".figures").inner_text()
    assert re.search(r"300 tokens.*first token [\d.]+ m?s.*[\d.]+ tok/s.*cached \d+.*\d+ blocks", figures, re.S)
    assert re.fullmatch(r"[\d,]+ of [\d,]+ tokens", tab.page.locator("#composer .used").inner_text())
    tab.wait_tile("KV blocks in use", "0")
    assert re.match(r"[\d.]+", tab.tile("Time to first token")) and re.match(r"[\d.]+", tab.tile("Memory"))
    assert re.search(r"0 in use · 0 shared · [1-9]\d* cached", tab.view("blocks").locator(".note").first.inner_text())
    first_token = tab.replies.last.locator(".figures [data-tip]", has_text="first token").last
    definition = first_token.get_attribute("data-tip")
    assert definition is not None and "first token" in definition


def test_escape_stops_the_engine_and_keeps_the_partial_reply(new_tab: NewTab) -> None:
    tab = new_tab()
    tab.set(ENDLESS)
    tab.send("Tell me everything.")
    tab.wait_streaming()
    seen = tab.live_text()
    tab.stop()
    tab.wait_stopped()
    kept = tab.page.evaluate("document.querySelector('#transcript .reply .text').textContent")
    assert kept.startswith(seen[:40])
    assert "Stopped here" in tab.replies.last.inner_text()
    tab.wait_running(0)
    tab.wait_tile("KV blocks in use", "0")
    tokens = int(re.search(r"(\d+) tokens", tab.replies.last.inner_text())[1])
    assert tokens < int(ENDLESS["max_tokens"])
    tab.page.reload()
    tab.wait_stopped()
    assert tab.page.evaluate("document.querySelector('#transcript .reply .text').textContent") == kept
    tab.set(SHORT)
    assert tab.ask("And then?")


def test_a_reload_in_mid_reply_shows_what_was_written_marked_stopped(new_tab: NewTab) -> None:
    tab = new_tab()
    tab.set(ENDLESS)
    tab.send("Tell me about the sea.")
    tab.wait_streaming()
    seen = tab.live_text()[:30]
    tab.page.reload()
    tab.wait_stopped()
    assert tab.questions.all_inner_texts() == ["Tell me about the sea."]
    assert tab.page.evaluate("document.querySelector('#transcript .reply .text').textContent").startswith(seen)


def test_closing_the_tab_stops_its_reply(new_tab: NewTab) -> None:
    tab, witness = new_tab(), new_tab()
    tab.set(ENDLESS)
    tab.send("Tell me about closing doors.")
    tab.wait_streaming()
    chat = re.search(r"chat=(\d+)", tab.page.url)
    assert chat is not None
    tab.page.close()
    witness.open(f"?chat={chat[1]}")
    witness.wait_stopped()
    witness.wait_running(0)


def test_closing_the_tab_stops_a_reply_in_a_chat_that_it_no_longer_shows(new_tab: NewTab) -> None:
    tab, witness = new_tab(), new_tab()
    tab.set(ENDLESS)
    tab.send("Tell me about doors left open.")
    tab.wait_streaming()
    tab.page.get_by_role("button", name="New chat").click()
    tab.page.locator("#transcript .empty").wait_for()
    witness.wait_running(1)
    tab.page.close(run_before_unload=False)
    witness.wait_running(0)


def test_eight_tabs_of_one_browser_stream_at_once_and_every_page_stays_usable(new_tab: NewTab) -> None:
    first = new_tab(width=390, height=844)  # small: every window of a headless browser counts as looked at, and draws
    running = "([n]) => Playground.live.now.running === n"
    first.set(ENDLESS)
    tabs = [first, *(first.beside() for _ in range(7))]
    for number, tab in enumerate(tabs):
        tab.send(f"Tell me story number {number}.")
    for tab in tabs:
        tab.wait_streaming()
    first.wait(running, [8])
    before = [len(tab.live_text()) for tab in tabs]
    for tab, length in zip(tabs, before, strict=True):
        tab.wait_streaming(length + 20)
    first.wait(running, [8])  # all of them have grown while all of them were being written

    visitor = first.beside()
    page = visitor.page
    page.set_viewport_size({"width": 1440, "height": 900})
    page.get_by_role("link", name="Compare", exact=True).click()
    page.get_by_role("button", name="Compare configurations of my own").click()
    page.locator(".compare .col").nth(1).wait_for()
    page.get_by_role("link", name="Requests", exact=True).click()
    page.locator("#runs .list tbody tr").nth(7).wait_for()
    page.get_by_role("link", name="Lab", exact=True).click()
    page.get_by_label("Acceptance α").fill("0.5")
    page.locator(".lab .headline .figure", has_text="Tokens per step").wait_for()
    page.get_by_role("link", name="Models", exact=True).click()
    page.locator("#models").get_by_text("storyteller-draft").first.wait_for()
    page.get_by_role("link", name="Chat", exact=True).click()
    visitor.sessions.get_by_text("Tell me story number 3.").click()
    visitor.wait_streaming()  # the reply so far, and how it goes on
    visitor.wait_streaming(len(visitor.live_text()) + 20)

    for number, tab in enumerate(tabs):
        length = [len(other.live_text()) for other in tabs[number + 1 :]]
        tab.stop()
        tab.wait_stopped()
        assert tab.questions.all_inner_texts() == [f"Tell me story number {number}."]
        for other, so_far in zip(tabs[number + 1 :], length, strict=True):
            other.wait_streaming(so_far)  # grows on
    visitor.wait_stopped()  # the same chat in another tab
    first.wait(running, [0])
    first.wait("() => Playground.live.now.blocks_in_use === 0")


def test_a_stale_tab_cannot_overwrite_newer_turns(new_tab: NewTab) -> None:
    tab = new_tab()
    tab.set(SHORT)
    tab.ask("first question")
    stale = tab.beside()
    stale.open(tab.page.url.removeprefix(tab.address))
    stale.replies.last.wait_for()
    newer = tab.ask("second question")
    stale.page.get_by_role("button", name="Retry").click()
    stale.page.locator("#transcript .problem", has_text="This chat has gone on in another tab").wait_for()
    for one in (stale, tab):
        one.page.reload()
        one.replies.nth(1).wait_for()
        assert one.questions.all_inner_texts() == ["first question", "second question"]
        assert one.reply_text() == newer and one.page.locator("#transcript .versions").count() == 0


def test_two_tabs_have_their_own_chats_and_stream_at_the_same_time(new_tab: NewTab) -> None:
    one, two = new_tab(), new_tab()
    for tab in (one, two):
        tab.set(ENDLESS)
    one.send("first tab speaking")
    two.send("second tab speaking")
    for tab in (one, two):
        tab.wait_streaming()
    two.wait_running(2)
    before = len(one.live_text()), len(two.live_text())
    for tab, length in zip((one, two), before, strict=True):
        tab.wait_streaming(length + 20)
    for tab in (one, two):
        tab.stop()
        tab.wait_stopped()
    assert one.questions.all_inner_texts() == ["first tab speaking"]
    assert two.questions.all_inner_texts() == ["second tab speaking"]
    assert one.page.url != two.page.url


def test_another_chat_can_be_opened_in_mid_reply_and_the_reply_goes_on(new_tab: NewTab) -> None:
    tab = new_tab()
    tab.set({**LONG, "max_tokens": "500"})
    tab.send("Tell me about rivers and bridges.")
    tab.wait_streaming()
    tab.page.get_by_role("button", name="New chat").click()
    tab.page.locator("#transcript .empty").wait_for()
    assert tab.live_text() == "" and "chat=" not in tab.page.url
    tab.sessions.get_by_text("Tell me about rivers and bridges.").click()
    tab.replies.last.wait_for()
    assert "500 tokens" in tab.replies.last.inner_text()


def test_chats_are_searched_renamed_reopened_and_deleted(new_tab: NewTab) -> None:
    tab = new_tab()
    tab.set(SHORT)
    tab.ask("A question about zebras")
    tab.page.get_by_role("button", name="New chat").click()
    tab.page.locator("#transcript .empty").wait_for()
    tab.ask("A question about lanterns")
    tab.page.keyboard.press("Control+k")
    tab.page.keyboard.type("ZEBRA")
    tab.wait("() => document.querySelectorAll('#sessions .session').length === 1")
    tab.sessions.first.click()
    tab.wait("() => document.querySelector('#transcript .bubble').textContent === 'A question about zebras'")
    tab.page.locator("#sessions .session.current").hover()
    tab.page.get_by_role("button", name="Rename A question about zebras").click()
    tab.page.keyboard.type("Striped horses")
    tab.page.keyboard.press("Enter")
    tab.sessions.get_by_text("Striped horses").wait_for()
    assert tab.page.title().startswith("Striped horses")
    tab.page.reload()
    tab.sessions.get_by_text("Striped horses").wait_for()
    assert tab.questions.all_inner_texts() == ["A question about zebras"]
    tab.page.locator("#sessions .session.current").hover()
    tab.page.get_by_role("button", name="Delete Striped horses").click()
    tab.page.locator("#transcript .empty").wait_for()
    assert tab.page.get_by_role("status").filter(has_text="Chat deleted").is_visible()
    tab.page.locator(".undo-bar").get_by_role("button", name="Undo").click()
    tab.wait("() => document.querySelector('#transcript .bubble')?.textContent === 'A question about zebras'")
    tab.page.locator("#sessions .session.current").hover()
    tab.page.get_by_role("button", name="Delete Striped horses").click()
    tab.page.locator("#transcript .empty").wait_for()
    assert tab.sessions.get_by_text("Striped horses").count() == 0
    assert tab.sessions.get_by_text("A question about lanterns").count() == 1


def test_retry_edit_and_undo(new_tab: NewTab) -> None:
    tab = new_tab()
    tab.set({**ODD, "seed": "1"})
    first = tab.ask("Say something odd")
    tab.set({"seed": "2"})
    tab.page.get_by_role("button", name="Retry").click()
    tab.wait(
        "([old]) => { const r = document.querySelector('#transcript .reply .text'); return r && r.innerText !== old; }",
        [first],
    )
    tab.wait_idle()
    assert tab.questions.count() == 1 and tab.replies.count() == 1
    tab.page.locator("#transcript .message.user").hover()
    tab.page.get_by_role("button", name="Edit").click()
    area = tab.page.get_by_role("textbox", name="Edit your message")
    assert area.input_value() == "Say something odd"
    area.fill("Say something even")
    area.press("Enter")
    tab.wait("() => document.querySelector('#transcript .bubble')?.textContent === 'Say something even'")
    tab.replies.last.wait_for()
    tab.wait_idle()
    assert tab.questions.count() == 1 and tab.replies.count() == 1
    tab.page.get_by_role("button", name="Undo").click()
    tab.page.locator("#transcript .empty").wait_for()
    assert tab.box.input_value() == "Say something even"


def test_a_hostile_message_stays_text_everywhere(new_tab: NewTab) -> None:
    tab = new_tab()
    tab.set(SHORT)
    tab.ask(HOSTILE)
    assert tab.questions.last.inner_text() == HOSTILE
    assert (
        tab.sessions.first.inner_text() == HOSTILE[:59].rpartition(" ")[0] + "…"
        or tab.sessions.first.inner_text() in HOSTILE
    )
    assert tab.page.title().startswith("<img src=x onerror=")
    tab.page.locator("#sessions .session.current").hover()
    tab.page.get_by_role("button", name="Rename").first.click()
    tab.page.keyboard.type(HOSTILE[:58])
    tab.page.keyboard.press("Enter")
    tab.sessions.get_by_text(HOSTILE[:50]).wait_for()
    tab.page.keyboard.press("Control+k")
    tab.page.keyboard.type("<img src=x onerror=window.__pwned=1>no such chat${window.__pwned=1}")
    tab.page.locator("#sessions .none").wait_for()
    tab.page.reload()
    tab.replies.last.wait_for()
    tab.page.get_by_role("button", name="System prompt").click()
    tab.page.locator("#setting-system").fill(HOSTILE)
    tab.set({"temperature": HOSTILE})
    tab.send(HOSTILE)
    assert "<img src=x" in tab.page.locator("#transcript .problem").inner_text()
    assert tab.page.evaluate("window.__pwned") is None
    assert tab.page.locator("#page img").count() == 0


LINK = '<a href="{0}" target="_blank" rel="noopener noreferrer nofollow">t</a>'
TABLE = (
    '<div class="table"><table><thead><tr><th scope="col">a</th><th scope="col">b</th></tr></thead>'
    "<tbody><tr><td>1</td><td>&lt;i&gt;</td></tr></tbody></table></div>"
)
MARKDOWN = [
    ("plain\nline", "<p>plain<br>line</p>"),
    ("**b** *i* `c` ~~s~~", "<p><strong>b</strong> <em>i</em> <code>c</code> <s>s</s></p>"),
    ("snake_case_name 2*3*4 __init__.py", "<p>snake_case_name 2*3*4 <strong>init</strong>.py</p>"),
    ("- a\n- b\n  - c\n\ntext", "<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul><p>text</p>"),
    ("3. x\n4. y", '<ol start="3"><li>x</li><li>y</li></ol>'),
    ("> quoted", "<blockquote><p>quoted</p></blockquote>"),
    ("[t](https://example.org)", f"<p>{LINK.format('https://example.org')}</p>"),
    ("[t](javascript:alert(1))", "<p>t (javascript:alert(1))</p>"),
    ("![t](https://example.org/x.png)", f"<p>{LINK.format('https://example.org/x.png')}</p>"),
    ("<b onclick=x>no</b> &amp;", "<p>&lt;b onclick=x&gt;no&lt;/b&gt; &amp;amp;</p>"),
    ("a | b\n--|--", "<p>a | b<br>--|--</p>"),
    ("| a | b |\n|---|---|\n| 1 | <i> |", TABLE),
]


def test_markdown_becomes_nodes_and_markup_stays_text(new_tab: NewTab) -> None:
    tab = new_tab()
    render = "(text) => Playground.markdown(text, document.createElement('div')).innerHTML"
    for text, html in MARKDOWN:
        assert tab.page.evaluate(render, text) == html, text
    code = tab.page.evaluate(render, "before\n```python\n<img src=x onerror=alert(1)>\n  x = 1\n```\nafter")
    assert "<pre" in code and "&lt;img src=x onerror=alert(1)&gt;\n  x = 1</code>" in code and "<p>after</p>" in code
    unfinished = tab.page.evaluate(render, "```js\nlet x = `1`;")
    assert "let x = `1`;</code>" in unfinished


def test_a_growing_text_renders_as_the_whole_would_and_keeps_finished_blocks(new_tab: NewTab) -> None:
    tab = new_tab()
    text = "One **two** three.\n\n- a\n- b\n\n```py\nx = 1\n```\n\nEnd *of* it"
    same = """(text) => { const grow = document.createElement('div'); let first = null;
      for (let n = 1; n <= text.length; n++) {
        Playground.markdown(text.slice(0, n), grow);
        if (n === 30) first = grow.firstElementChild;
      }
      const whole = Playground.markdown(text, document.createElement('div'));
      return [grow.innerHTML === whole.innerHTML, first === grow.firstElementChild]; }"""
    assert tab.page.evaluate(same, text) == [True, True]


def test_pathological_markdown_does_not_hang_the_page(new_tab: NewTab) -> None:
    tab = new_tab()
    time_it = """(text) => { const started = performance.now();
      Playground.markdown(text, document.createElement('div'));
      return performance.now() - started; }"""
    for text in (
        "*a " * 4000,
        "`" * 8000,
        "[" * 8000,
        "**" * 4000,
        "_a" * 4000,
        "> " * 400 + "x",
        "- " * 2000,
        "|" * 8000,
        "~~~" * 3000,
    ):
        assert tab.page.evaluate(time_it, text) < 3000, text[:6]


def test_a_refused_setting_is_said_in_place_and_nothing_typed_is_lost(new_tab: NewTab) -> None:
    tab = new_tab()
    tab.set({"temperature": "hot"})
    tab.send("keep this text")
    problem = tab.page.locator("#transcript .problem")
    assert problem.inner_text() == "Temperature: 'hot' is not allowed, give a number from 0 (greedy) to 100."
    assert tab.box.input_value() == "keep this text"
    assert tab.page.get_by_role("combobox", name="Sampling preset").input_value() == "Custom"
    tab.page.get_by_role("combobox", name="Sampling preset").select_option("Precise")
    tab.set({"max_tokens": "8"})
    tab.box.press("Enter")
    tab.replies.last.wait_for()
    assert problem.count() == 0 and tab.questions.all_inner_texts() == ["keep this text"]


def test_enter_sends_and_shift_enter_breaks_the_line(new_tab: NewTab) -> None:
    tab = new_tab()
    tab.set(SHORT)
    tab.box.focus()
    for key in ("a", "Shift+Enter", "b", "Enter"):
        tab.page.keyboard.press(key)
    tab.replies.last.wait_for()
    assert tab.questions.last.inner_text() == "a\nb" and tab.box.input_value() == ""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_narrow_page_has_no_sideways_scroll_and_its_list_is_a_drawer(new_tab: NewTab, theme: str) -> None:
    tab = new_tab(width=390, height=844, theme=theme)
    assert tab.page.evaluate("document.body.classList.contains('dark')") == (theme == "dark")
    tab.set(SHORT)
    tab.ask("A narrow question " + "averyveryverylongword" * 12)
    assert not tab.scrolls_sideways()
    search = tab.page.get_by_role("searchbox", name="Search chats")
    assert not search.is_visible()
    tab.page.get_by_role("button", name="Chats").click()
    search.wait_for(state="visible")
    assert not tab.scrolls_sideways()
    tab.page.keyboard.press("Escape")
    search.wait_for(state="hidden")


def test_every_control_has_a_name_and_focus_is_visible(new_tab: NewTab) -> None:
    tab = new_tab()
    tab.set(SHORT)
    tab.ask("Hello")
    nameless = tab.page.evaluate(
        """() => [...document.querySelectorAll('#page button, #page input, #page textarea, #page select')]
        .filter((node) => !(node.getAttribute('aria-label') || node.textContent.trim()
          || (node.labels && node.labels.length)))
        .map((node) => node.outerHTML.slice(0, 120))"""
    )
    assert nameless == []
    unseen = set()
    tab.page.locator("#topbar").click()
    for _ in range(30):
        tab.page.keyboard.press("Tab")
        seen = tab.page.evaluate(
            """() => { const n = document.activeElement; const s = getComputedStyle(n);
            const ring = s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) > 0;
            const boxed = n.closest('.box') && n.tagName === 'TEXTAREA'; // its box shows the focus
            return ring || boxed || n.tagName === 'BODY' ? '' : n.outerHTML.slice(0, 120); }"""
        )
        unseen |= {seen} - {""}
    assert unseen == set()


def test_the_panel_sets_what_was_predicted_beside_what_was_measured(new_tab: NewTab) -> None:
    tab = new_tab()
    tab.set(SHORT)
    tab.ask("hello")
    row = """([name, n]) => [...document.querySelectorAll("#view-predicted tbody tr")].some((row) =>
        row.innerText.startsWith(name) && (row.innerText.match(/—/g) || []).length === n)"""
    tab.wait(row, ["KV/token", 0])
    cells = tab.page.locator("#view-predicted tbody tr", has_text="KV/token").locator("td").all_inner_texts()
    assert cells[0] == cells[1] and cells[2] == "0 %", "the cache takes what the formula says"
    tab.wait(row, ["Tokens/step", 3])
    assert "do not apply" in tab.page.locator("#view-gpu").inner_text()
    assert tab.page.locator("#view-gpu .meter:visible").count() == 0
    roofline = tab.page.locator("#view-roofline")
    assert "easured" in roofline.locator(".small").inner_text()
    tab.wait("() => document.querySelector('#view-roofline canvas').getAttribute('aria-label').includes('steps')")
