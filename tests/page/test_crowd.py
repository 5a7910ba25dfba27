"""Three hundred peers on the page, from a gateway that pretends: what Chromium shows of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from .conftest import Looking, pretending
from .test_page import clean

pytestmark = pytest.mark.swarm


@pytest.fixture
def crowd(browser: Browser) -> Iterator[Looking]:
    """The swarm's view of a gateway that tells of 300 peers."""
    with pretending("crowd") as url:
        context = browser.new_context(viewport={"width": 1440, "height": 900})
        seen = Looking(context.new_page())
        seen.page.goto(f"{url}#/swarm")
        yield seen
        context.close()
        assert seen.said == []


def dots(page: Page) -> int:
    """Pixels of the map that are drawn in full."""
    return page.locator("canvas").evaluate(
        # From a copy: the map's own canvas is made to be drawn, and Chromium warns of reading it.
        "c => { const copy = new OffscreenCanvas(c.width, c.height)"
        ".getContext('2d', {willReadFrequently: true});"
        " copy.drawImage(c, 0, 0); const all = copy.getImageData(0, 0, c.width, c.height).data;"
        " let n = 0; for (let i = 3; i < all.length; i += 4) n += all[i] > 200; return n }"
    )


def test_three_hundred_peers_are_found_and_grouped(crowd: Looking) -> None:
    page = crowd.page
    counted, rows = page.locator(".tools [role=status]"), page.locator("tbody tr")
    expect(counted).to_have_text("300 peers")
    expect(page.get_by_role("img", name="300 peers by round trip")).to_be_visible()
    crowd.until(lambda: dots(page) > 5_000, 10)
    everyone = dots(page)
    clean(page)
    page.set_viewport_size({"width": 1440, "height": 900})

    page.get_by_label("Groups by").select_option("version")
    groups = page.get_by_role("list", name="Groups").get_by_role("button")
    expect(groups).to_have_text(["shoal/0.3.0 180", "shoal/0.2.0 60", "shoal/0.2.1 60"])
    groups.nth(2).click()
    expect(counted).to_have_text("60 of 300 peers")
    page.get_by_label("Search the peers").fill("A100")
    expect(counted).to_have_text("10 of 300 peers")
    expect(rows).to_have_count(10)
    crowd.until(lambda: 0 < dots(page) < everyone / 3, 10)  # the others are faint
    crowd.shot("crowd-found")

    page.get_by_label("Search the peers").fill("")
    groups.nth(2).click()
    expect(rows).to_have_count(50)
    expect(rows.filter(has_text="operator").first).to_be_visible()
    page.get_by_role("button", name="Show 50 more").click()
    expect(rows).to_have_count(100)
    page.get_by_label("Search the peers").fill("nobody-has-this")
    expect(rows).to_have_text(["No peer has all of these words."])
