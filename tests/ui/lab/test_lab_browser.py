"""The Lab page in a real browser: theory that answers, and a benchmark from the click to its table."""

from typing import Any

import pytest

from tests.ui.browser import Tab

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


def figure(tab: Tab, label: str) -> str:
    return str(tab.page.locator(".lab .headline .figure", has_text=label).locator(".value").inner_text())


def test_sliders_answer_at_once_with_measured_points_beside(browser: Any, address: str) -> None:
    tab = Tab(browser, address, width=390, height=844, theme="dark")
    tab.page.get_by_role("link", name="Lab", exact=True).click()
    tab.page.get_by_text("Points: measured elsewhere").wait_for()
    tab.page.get_by_label("Measured case").select_option("")
    tab.page.get_by_label("Draft cost c").fill("0.1")
    tab.page.get_by_label("Verify cost v").fill("1")
    tab.page.get_by_label("Drafts K").fill("4")
    tab.page.get_by_label("Acceptance α").fill("0.5")
    assert figure(tab, "Tokens per step") == "1.94"  # 1 + 1/2 + 1/4 + 1/8 + 1/16
    tab.page.get_by_label("Acceptance α").press("ArrowRight")
    assert figure(tab, "Tokens per step") == "1.97"
    plot = tab.page.get_by_role("img", name="Speed-up by number of drafts")
    assert "At K = 4 1.41 times as fast" in plot.get_attribute("aria-label")
    plot.locator(".scatterlayer .trace").nth(2).wait_for(state="attached")
    assert plot.locator(".scatterlayer .trace").nth(2).locator(".point").count() > 10
    tab.page.get_by_label("Lab", exact=True).locator("visible=true").select_option("kv")
    tab.page.get_by_role("img", name="KV bytes by context").locator(".scatterlayer .trace").first.wait_for(
        state="attached"
    )
    assert figure(tab, "A token") == "128 KiB"  # Llama 3.1 8B: 2 x 32 x 8 x 128 x 2
    assert not tab.scrolls_sideways()
    assert tab.problems == []
    tab.close()


def test_a_benchmark_runs_in_its_own_process_and_its_result_can_be_deleted(browser: Any, address: str) -> None:
    tab = Tab(browser, address)
    tab.page.goto(f"{address}#lab/run/kernels")
    tab.page.get_by_text("There is no GPU here").or_(
        tab.page.get_by_role("button", name="Run", exact=True)
    ).first.wait_for()
    tab.page.get_by_role("link", name="Run a quick one").click()
    model = tab.page.get_by_role("textbox", name="Model")  # and "Model · changed" once it is
    model.fill("no-such-model")
    tab.page.get_by_role("button", name="Run", exact=True).click()
    job = tab.page.get_by_role("region", name="Benchmark", exact=True)
    job.get_by_text("is neither").first.wait_for()
    model.fill("dummy-tiny")
    tab.page.get_by_role("button", name="Run", exact=True).click()
    job.get_by_role("button", name="Stop").wait_for()
    tab.page.get_by_text("A benchmark is running").first.wait_for()
    job.get_by_role("link", name="Open the result").click()
    table = tab.page.get_by_role("region", name="KV blocks: dummy-tiny, as a table")
    assert "3 beams" in table.inner_text()
    tab.page.get_by_role("img", name="KV blocks: dummy-tiny").locator(".bars .point").first.wait_for(state="attached")
    assert "A quick run" in tab.page.locator(".lab .result").inner_text()
    results = tab.page.locator(".lab .index .entries", has_text="Results")
    assert "Shared blocks, quick" in results.inner_text()
    tab.page.get_by_role("button", name="Delete", exact=True).click()
    tab.page.get_by_role("button", name="Delete for good?").click()
    results.get_by_text("What you measure will be listed here").wait_for()
    assert tab.problems == []
    tab.close()
