"""The market on the page, from a gateway that pretends: offers, money over time, and a file of it all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from .conftest import Looking, pretending
from .test_page import looked_at

pytestmark = pytest.mark.swarm


@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("dark", 1920)])
def test_offers_are_listed_sorted_and_exported_and_earnings_are_drawn(
    browser: Browser, tmp_path: Path, scheme: str, width: int
) -> None:
    with pretending("many") as url:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
        )
        seen = Looking(context.new_page())
        page = seen.page
        page.goto(f"{url}#/market")
        rows = page.get_by_role("region", name="Offers").locator("tbody tr")
        expect(rows).to_have_count(15)
        expect(rows.first).to_contain_text("free")
        page.get_by_role("button", name="Price").click()
        expect(page.locator("th[aria-sort='descending']")).to_contain_text("Price")
        expect(rows.first).to_contain_text("0.00")
        expect(page.get_by_text("found out")).to_have_count(1)
        expect(page.get_by_text("Protection: fast and audited.")).to_be_visible()
        for what in ("Earned", "Spent"):
            plot = page.get_by_role("img", name=f"{what} over the last 30 days")
            expect(plot.locator("path")).to_have_count(1)
        with page.expect_download() as download:
            page.get_by_role("button", name="Export CSV").click()
        file = tmp_path / "market.csv"
        download.value.save_as(file)
        assert len(file.read_text().splitlines()) == 16
        found = looked_at(page)
        wrong = [rule for rule in found["violations"] if rule["impact"] in ("serious", "critical")]
        assert wrong == [], json.dumps(wrong, indent=1)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        seen.shot(f"market-{scheme}-{width}")
        context.close()
        assert seen.said == []
