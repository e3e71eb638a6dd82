"""The instrument panel in a real browser: what a person sees of the engine while a reply is written, and after it."""

import pytest

from playground.telemetry import format as written
from tests.ui.browser import NewTab, Tab
from tests.ui.budget import busy_share
from tests.ui.endless import ENDLESS, SHORT

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

KV, OTHER, CACHED = (0, 114, 178), (230, 159, 0), (201, 205, 210)
"""Colours of a block of this request, of another one's, of one that is only kept; light theme."""

# The colours of the squares of the map near their lower edge, where a part-filled block is filled. Read from a copy:
# the browser warns about reading from a canvas that is drawn on.
SQUARES = """() => {
  const canvas = document.querySelector('#view-blocks canvas.map');
  const [columns, pitch, tall] = canvas.dataset.grid.split(',').map(Number);
  const scale = canvas.width / canvas.clientWidth;
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d', {willReadFrequently: true});
  copy.drawImage(canvas, 0, 0);
  const colours = new Set();
  for (let y = tall - 4; y < canvas.clientHeight; y += tall) {
    for (let column = 0; column < columns; column++) {
      colours.add([...copy.getImageData((column * pitch + 3) * scale, y * scale, 1, 1).data.slice(0, 3)].join());
    }
  }
  return [...colours];
}"""


def wait_for_squares(tab: Tab, colours: set[tuple[int, int, int]]) -> None:
    """Until the map shows squares of all these colours."""
    wanted = [",".join(map(str, colour)) for colour in colours]
    condition = f"(wanted) => {{ const seen = ({SQUARES})(); return wanted.every((one) => seen.includes(one)); }}"
    tab.wait(condition, wanted)


def test_blocks_have_the_colour_of_who_holds_them(new_tab: NewTab) -> None:
    one, two = new_tab(), new_tab()
    one.set(ENDLESS)
    one.send("first tab speaking")
    one.wait_streaming()
    wait_for_squares(one, {KV})
    two.set(ENDLESS)
    two.send("second tab speaking")
    two.wait_streaming()
    wait_for_squares(two, {KV, OTHER})
    table = two.view("blocks").locator("canvas").nth(1)
    assert "physical numbers" in table.get_attribute("aria-label")
    for tab in (one, two):
        tab.stop()
        tab.wait_stopped()
    wait_for_squares(two, {CACHED})
    two.wait_tile("KV blocks in use", "0")
    assert "It" not in (table.get_attribute("aria-label") or "It") and "no blocks" in table.get_attribute("aria-label")


def test_pointing_at_a_block_and_at_the_block_table_says_the_same_block(new_tab: NewTab) -> None:
    tab = new_tab()
    tab.set(ENDLESS)
    tab.send("point at me")
    tab.wait_streaming(200)
    wait_for_squares(tab, {KV})
    table = tab.view("blocks").locator("canvas").nth(1)
    tip = tab.page.locator("#playground-tip")
    table.hover(position={"x": 8, "y": 8})
    tab.wait("() => /^Its block 1, tokens 1 to/.test(document.getElementById('playground-tip').textContent)")
    block = tip.inner_text().split("Block ")[1].split(":")[0]
    square = int(block.replace(",", "")) - 1
    blocks = tab.view("blocks").locator("canvas.map")
    columns, pitch, tall = map(int, blocks.get_attribute("data-grid").split(","))
    blocks.hover(position={"x": square % columns * pitch + 3, "y": square // columns * tall + 3})
    tab.wait("([name]) => document.getElementById('playground-tip').textContent.startsWith(name)", [f"Block {block}:"])
    assert "held by #" in tip.inner_text() and "(its block 1)" in tip.inner_text()
    lanes = tab.view("requests").locator("canvas").first
    box = lanes.bounding_box()
    lanes.hover(position={"x": box["width"] - 12, "y": 10})
    tab.wait("() => /^#\\d+[,:]/.test(document.getElementById('playground-tip').textContent)")
    tab.stop()
    tab.wait_stopped()


def test_a_paused_map_stands_still_and_goes_back_in_time(new_tab: NewTab) -> None:
    tab = new_tab()
    tab.set(ENDLESS)
    tab.send("hold still")
    tab.wait_streaming()
    in_use = "Number(document.querySelector('#view-blocks .note').textContent.split(' ')[0])"
    tab.wait(f"() => {in_use} > 4")
    tab.view("blocks").locator("canvas.map").focus()
    tab.page.keyboard.press("Space")
    picture = "document.querySelector('#view-blocks canvas.map').toDataURL()"
    before, held, seq = tab.page.evaluate(f"[{picture}, {in_use}, Playground.live.seq]")
    tab.wait("([seq]) => Playground.live.seq > seq + 12", [seq])
    assert tab.page.evaluate(f"[{picture}, {in_use}]") == [before, held]
    moment = tab.view("blocks").get_by_role("slider", name="Moment that the map shows")
    assert moment.get_attribute("aria-valuetext") == "held still here"
    moment.press("Home")
    assert "before" in moment.get_attribute("aria-valuetext")
    assert tab.page.evaluate(in_use) < held and tab.page.evaluate(picture) != before
    moment.press("End")
    assert tab.page.evaluate(f"[{picture}, {in_use}]") == [before, held]
    tab.view("blocks").locator("canvas.map").focus()
    tab.page.keyboard.press("Space")
    tab.wait(f"([before]) => {picture} !== before", [before])
    assert not moment.is_visible()
    tab.stop()
    tab.wait_stopped()


def test_a_picture_with_the_focus_is_read_with_the_arrow_keys(new_tab: NewTab) -> None:
    tab = new_tab()
    tab.set(SHORT)
    tab.ask("Read me")
    picture = tab.view("memory").locator("canvas")
    picture.focus()
    tab.page.keyboard.press("ArrowLeft")
    assert "Weights" in tab.page.get_by_role("tooltip").inner_text()
    assert "Weights" in picture.get_attribute("aria-description")
    tab.page.locator("#strip .tile").first.focus()
    tab.page.keyboard.press("Shift+Tab")
    tab.page.keyboard.press("Tab")
    assert tab.page.locator(".tip .kind").inner_text() == "measured"


def test_the_colours_are_chosen_and_kept(new_tab: NewTab) -> None:
    tab = new_tab()
    dark = "document.body.classList.contains('dark')"
    assert not tab.page.evaluate(dark)
    tab.page.get_by_role("button", name="Dark colours").click()
    assert tab.page.evaluate(dark)
    tab.open()
    tab.wait(f"() => {dark}")
    tab.page.get_by_role("button", name="Dark colours").click()
    assert not tab.page.evaluate(dark)


def test_the_live_views_take_less_than_a_quarter_of_a_core(new_tab: NewTab) -> None:
    tab = new_tab()
    tab.page.locator("#view-gpu").wait_for()
    for _ in range(3):  # what else the machine does can only add to it
        _, share = busy_share(tab, seconds=4)
        if share < 0.25:
            break
    assert " 0 empty" in tab.page.locator("#view-blocks .note").first.inner_text()
    assert 0.01 < share < 0.25, f"{share:.1%} of one core at 12 frames a second"


def test_nothing_is_mounted_anew_and_an_idle_page_is_quiet(new_tab: NewTab) -> None:
    tab = new_tab()
    tab.set(SHORT)
    tab.page.evaluate("() => { window.__canvases = [...document.querySelectorAll('#page canvas')]; }")
    tab.ask("Hello")
    assert tab.page.evaluate("window.__canvases.length") >= 6 + 2 + 2 + 3 + 1
    assert tab.page.evaluate("window.__canvases.every((canvas) => canvas.isConnected)")
    tab.wait("() => Playground.live.now.tokens_per_second === null && Playground.live.now.step > 0")
    seen = None  # at rest, once the machine's rates have been measured: that is done when nothing else runs, and told
    while seen != (seen := tab.page.evaluate("Playground.live.seq")):
        tab.page.wait_for_timeout(3000)
    tab.page.evaluate(
        """() => { window.__changes = 0; window.__seq = Playground.live.seq;
        new MutationObserver((all) => { window.__changes += all.length; })
          .observe(document.getElementById('page'), {subtree: true, childList: true, attributes: true}); }"""
    )
    tab.page.wait_for_timeout(1200)
    assert tab.page.evaluate("[window.__changes, Playground.live.seq - window.__seq]") == [0, 0]


def test_a_page_that_is_reloaded_finds_the_pictures_where_they_were(new_tab: NewTab) -> None:
    tab = new_tab()
    tab.set(SHORT)
    tab.ask("Remember me")
    tab.wait("() => Playground.live.now.tokens_per_second === null && Playground.live.now.step > 0")
    # The latest ones: the pictures look back half a minute, and the page takes some seconds to come back.
    steps = "Playground.live.steps.slice(-10).map((step) => step.step)"
    samples = "Playground.live.samples.map((sample) => sample.time_ms)"
    before, sampled = tab.page.evaluate(f"[{steps}, {samples}]")
    assert len(before) == 10 and len(sampled) > 1
    tab.page.reload()
    tab.wait(f"([steps]) => window.Playground && {steps}.join() === steps.join()", [before])
    assert set(sampled[-5:]) <= set(tab.page.evaluate(samples))
    tab.wait_tile("KV blocks in use", "0")
    wait_for_squares(tab, {CACHED})


def test_without_a_shared_worker_every_tab_has_a_stream_of_its_own(new_tab: NewTab) -> None:
    tab = new_tab()
    tab.context.add_init_script("delete window.SharedWorker")
    tab.open()
    other = tab.beside()
    assert not tab.page.evaluate("'SharedWorker' in window") and not other.page.evaluate("'SharedWorker' in window")
    for one, settings in ((tab, ENDLESS), (other, SHORT)):
        one.set(settings)
        one.send("Alone")
    other.replies.last.wait_for()
    other.wait_idle()
    assert len(other.reply_text()) > 5
    tab.wait_streaming()
    wait_for_squares(tab, {KV})
    tab.stop()
    tab.wait_stopped()
    other.page.close()


def test_the_panel_is_resized_by_keyboard_and_remembers_it(new_tab: NewTab) -> None:
    tab = new_tab()
    width = "document.getElementById('instruments').clientWidth"
    usual = tab.page.evaluate(width)
    assert 520 <= usual <= 560
    handle = tab.page.get_by_role("separator", name="Width of the instrument panel")
    handle.focus()
    for _ in range(3):
        tab.page.keyboard.press("ArrowRight")
    assert tab.page.evaluate(width) == usual - 48 and handle.get_attribute("aria-valuenow") == "500"
    tab.page.reload()
    tab.wait(f"([w]) => document.getElementById('instruments') && {width} === w", [usual - 48])
    box = handle.bounding_box()
    tab.page.mouse.move(box["x"] + 4, 400)
    tab.page.mouse.down()
    tab.page.mouse.move(box["x"] - 60, 400, steps=4)
    tab.page.mouse.up()
    assert tab.page.evaluate(width) == pytest.approx(usual - 48 + 64, abs=4)
    handle.focus()
    tab.page.keyboard.press("Home")
    assert tab.page.evaluate(width) == usual


@pytest.mark.parametrize("width", [390, 1000])
def test_on_a_narrow_page_the_panel_is_folded_under_the_chat(new_tab: NewTab, width: int) -> None:
    tab = new_tab(width=width, height=844)
    fold = tab.page.get_by_role("button", name="Instruments")
    assert fold.get_attribute("aria-expanded") == "false" and not tab.view("blocks").is_visible()
    fold.click()
    tab.view("blocks").wait_for()
    assert not tab.scrolls_sideways() and tab.box.is_visible()
    tab.set(SHORT)
    tab.ask("Still usable")
    fold.click()
    assert not tab.view("blocks").is_visible()


def test_a_page_is_named_by_the_address_and_marked_in_the_top_bar(new_tab: NewTab) -> None:
    tab = new_tab()
    chat = tab.page.get_by_role("link", name="Chat", exact=True)
    assert chat.get_attribute("aria-current") == "page" and chat.get_attribute("href") == "#chat"
    tab.page.goto(tab.address + "#no-such-page")
    tab.box.wait_for()
    assert chat.get_attribute("aria-current") == "page"


def test_numbers_are_written_in_the_browser_as_in_python(new_tab: NewTab) -> None:
    tab = new_tab()
    values = [
        0,
        0.0004,
        0.02549,
        0.99961,
        1,
        9.996,
        12.345,
        99.95,
        100,
        999.4,
        999.6,
        1023,
        1024,
        123456.7,
        8.1e9,
        None,
    ]
    writers = {
        "number": lambda value: written.format_number(value, "x"),
        "ms": lambda value: written.format_seconds(None if value is None else value / 1000),
        "percent": written.format_percent,
        "bytes": written.format_bytes,
        "rate": written.format_rate,
    }
    for name, write in writers.items():
        argument = (
            "(value) => Playground.format.number(value, 'x')" if name == "number" else f"Playground.format.{name}"
        )
        got = tab.page.evaluate(f"(values) => values.map({argument})", values)
        assert got == [list(write(value)) for value in values], name
    counts = [0, 7, 1234567]
    got = tab.page.evaluate("(values) => values.map(Playground.format.count)", counts)
    assert got == [list(written.format_count(value)) for value in counts]
