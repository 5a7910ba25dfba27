"""What the page shows when nodes come and go, when the gateway is lost, and when a key is wanted."""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from shoal import config
from shoal.gateway.access.keys import KeyLimits, create, revoke
from shoal.gateway.database.opening import database_at
from shoal.types import Span

from .conftest import EXPIRY_S, Looking, Shoal
from .test_page import WITHIN_MS, answered, ask

pytestmark = pytest.mark.swarm
MIDDLE = Span(10, 20)


def test_an_added_node_appears(looking: Looking, shoal: Shoal) -> None:
    page = looking.view("swarm")
    expect(page.locator("g.node:not(.me)")).to_have_count(3)
    peer = shoal.add(MIDDLE)
    expect(page.locator(f'g.node[data-peer="{peer}"]')).to_be_visible(timeout=10_000)
    expect(page.locator(".run[data-replicas='2']")).to_have_attribute("data-blocks", "10:20")
    looking.shot("swarm-four")


def test_a_killed_node_goes_from_the_picture_while_the_answer_goes_on(looking: Looking, shoal: Shoal) -> None:
    page = looking.page
    if len(shoal.pids) == 3:
        shoal.add(MIDDLE)
    ask(page, "Tell me a very long story about a fish that travels through all the seas.", longest=1500)
    page.locator(".prose.growing").filter(has_text=re.compile(r"\w{3}")).wait_for(timeout=WITHIN_MS)
    lost = page.locator("ol.line .hop").nth(1).get_attribute("title")
    assert lost
    looking.view("swarm")
    node = page.locator(f'g.node[data-peer="{lost}"]')
    expect(node).to_be_visible()
    page.locator("g.node").first.scroll_into_view_if_needed()
    page.wait_for_timeout(800)
    looking.shot("swarm-answering")
    shoal.kill(lost)
    looking.until(lambda: node.count() == 0, EXPIRY_S + 1.5)
    expect(page.locator(".run[data-replicas='1']")).to_have_attribute("data-blocks", "0:30")
    looking.view("chat")
    length = len(page.locator(".prose").inner_text())
    looking.until(lambda: len(page.locator(".prose").inner_text()) > length, 30)
    page.locator("#question").press("Escape")
    expect(page.locator("article.answer .error")).to_have_count(0)
    looking.view("requests")
    expect(page.locator("article[data-request]").first).to_contain_text("Re-routed", timeout=10_000)


def test_a_gap_is_red_and_hatched_and_said_until_somebody_fills_it(looking: Looking, shoal: Shoal) -> None:
    page = looking.view("swarm")
    expect(page.locator("g.node:not(.me)")).to_have_count(3)
    middle = page.locator("tbody tr", has_text="10–19").get_attribute("data-peer")
    assert middle
    shoal.kill(middle)
    gap = page.locator(".run.gap")
    looking.until(lambda: gap.count() == 1, EXPIRY_S + 1.5)
    assert gap.get_attribute("data-blocks") == "10:20"
    assert "repeating-linear-gradient" in gap.evaluate("gap => getComputedStyle(gap).backgroundImage")
    expect(page.get_by_text("10–19 served by nobody")).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("blocks 10–19 by nobody"))).to_be_visible()
    looking.shot("swarm-gap")
    looking.view("chat")
    expect(page.get_by_role("heading", name="has gaps")).to_be_visible()
    looking.view("swarm")
    shoal.add(MIDDLE)
    expect(gap).to_have_count(0, timeout=10_000)


def test_a_lost_gateway_is_said_and_the_page_recovers_by_itself(looking: Looking, shoal: Shoal) -> None:
    page = looking.view("swarm")
    shoal.gateway.kill()
    banner = page.get_by_text("The connection to the gateway is lost.")
    expect(banner).to_be_visible(timeout=5_000)
    expect(page.locator("g.node:not(.me)")).to_have_count(3)  # the last that was known stays
    looking.shot("lost")
    shoal.gateway.start()
    expect(banner).to_be_hidden(timeout=20_000)
    page.locator('.state[data-link="open"]').wait_for()
    expect(page.locator("g.node:not(.me)")).to_have_count(3, timeout=10_000)
    looking.view("chat")
    ask(page, "Say hello.")
    answered(page)
    # What the browser itself says of a connection that is refused is no fault of the page.
    assert all("net::ERR_" in said for said in looking.said), looking.said
    looking.said.clear()


@pytest.fixture
def key(shoal: Shoal) -> Iterator[str]:
    """While there is one, the gateway asks for it."""
    database = database_at("", config.load({}, {"SHOAL_HOME": str(shoal.gateway.home)}).paths.gateway)
    made, caller = create(database, "page", KeyLimits(), admin=True)
    wait_until(shoal, is_open=False)
    yield made
    revoke(database, caller.id)
    wait_until(shoal, is_open=True)


def wait_until(shoal: Shoal, *, is_open: bool) -> None:
    """Wait until the gateway has read its keys again: every second."""
    deadline = time.monotonic() + 5
    while answers(shoal) is not is_open:
        assert time.monotonic() < deadline, "the gateway has not read its keys again"
        time.sleep(0.1)


def answers(shoal: Shoal) -> bool:
    """Whether it answers without a key."""
    try:
        urllib.request.urlopen(f"{shoal.gateway.url}v1/models", timeout=5).close()
    except urllib.error.HTTPError:
        return False
    return True


def test_where_keys_are_in_use_one_is_asked_for_and_kept_for_the_tab(
    browser: Browser, shoal: Shoal, key: str
) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(shoal.gateway.url)
    dialog = page.get_by_role("dialog", name="This gateway needs an API key")
    expect(dialog).to_be_visible(timeout=10_000)
    page.get_by_label("Key", exact=True).fill("sk-wrong")
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_role("alert").filter(has_text="That key was refused")).to_be_visible()
    page.get_by_label("Key", exact=True).fill(key)
    page.get_by_role("button", name="Open").click()
    expect(dialog).to_be_hidden()
    page.locator('.state[data-link="open"]').wait_for()
    page.reload()
    page.locator('.state[data-link="open"]').wait_for()
    assert key not in page.evaluate("JSON.stringify(localStorage)")
    context.close()
