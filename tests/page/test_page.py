"""The page in a real browser, before a real swarm: what a person sees, and what stays harmless."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from shoal.gateway.page.apps import APPS

from .conftest import Looking, Shoal

pytestmark = pytest.mark.swarm

AXE = Path(__file__).parents[2] / "page/node_modules/axe-core/axe.min.js"
VIEWS = ["chat", "swarm", "requests", "add", "connect", "health"]
WITHIN_MS = 60_000
HARM = '<img src=x onerror="harmed=1"><script>harmed=1</script>\'"&'


def ask(page: Page, question: str, *, longest: int = 24) -> None:
    """Ask in the open conversation; the same question always gets the same answer."""
    page.get_by_role("button", name="How to answer").click()
    page.get_by_label("Longest answer").fill(str(longest))
    page.get_by_label("Temperature").fill("0")
    page.keyboard.press("Escape")
    page.fill("#question", question)
    page.keyboard.press("Enter")


def answered(page: Page) -> None:
    expect(page.get_by_role("button", name="Regenerate")).to_be_visible(timeout=WITHIN_MS)


def test_an_answer_streams_and_says_who_gave_it(looking: Looking, shoal: Shoal) -> None:
    page = looking.page
    ask(page, "Name three fish and say where each of them lives.", longest=48)
    growing = page.locator(".prose.growing")
    growing.filter(has_text=re.compile(r"\w")).wait_for(timeout=WITHIN_MS)
    line = page.locator("ol.line .hop")
    expect(line).to_have_count(3)
    first = growing.inner_text()
    looking.until(lambda: len(page.locator(".prose").inner_text()) > len(first) + 80, 40)
    looking.shot("chat")
    answered(page)
    by = page.locator(".by")
    expect(by.locator(".peer")).to_have_count(3)
    for blocks in ("(0–9)", "(10–19)", "(20–29)"):
        expect(by).to_contain_text(blocks)
    expect(by).to_contain_text(re.compile(r"\d tok/s"))
    peers = by.locator(".peer").evaluate_all("all => all.map(one => one.title)")
    assert set(peers) == set(shoal.pids)


def test_each_token_lights_the_line_unless_motion_is_unwanted(browser: Browser, shoal: Shoal) -> None:
    for motion, moves in (("no-preference", True), ("reduce", False)):
        context = browser.new_context(reduced_motion=motion)
        page = context.new_page()
        page.goto(shoal.gateway.url)
        page.locator("#model option", has_text="SmolLM2").first.wait_for(state="attached")
        page.evaluate(
            "window.lit = 0; const real = Element.prototype.animate;"
            "Element.prototype.animate = function (...a) { window.lit++; return real.apply(this, a) }; 0"
        )
        ask(page, "Count from one to twenty.")
        answered(page)
        assert (page.evaluate("window.lit") > 0) is moves, motion
        context.close()


def test_an_answer_can_be_stopped_and_asked_for_again(looking: Looking) -> None:
    page = looking.page
    ask(page, "Write a long story about a whale.", longest=400)
    page.locator(".prose.growing").filter(has_text=re.compile(r"\w{3}")).wait_for(timeout=WITHIN_MS)
    page.get_by_role("button", name="Stop the answer").click()
    expect(page.get_by_text("You stopped it here.")).to_be_visible()
    page.get_by_role("button", name="Regenerate").click()
    page.locator(".prose.growing").filter(has_text=re.compile(r"\w{3}")).wait_for(timeout=WITHIN_MS)
    page.locator("#question").press("Escape")
    expect(page.get_by_text("You stopped it here.")).to_be_visible()
    assert page.locator("article.answer").count() == 1


def test_a_conversation_is_still_there_after_a_reload(looking: Looking) -> None:
    page = looking.page
    ask(page, "Say hello.")
    answered(page)
    text = page.locator(".prose").inner_text()
    page.reload()
    page.get_by_role("button", name="Conversations").click()
    page.get_by_role("button", name=re.compile("^Say hello.")).click()
    assert page.locator(".prose").inner_text() == text
    page.get_by_role("button", name="Conversations").click()
    page.get_by_role("button", name="Forget: Say hello.").click()
    expect(page.get_by_text("None yet.")).to_be_visible()


def test_the_swarm_is_drawn_and_its_table_sorts(looking: Looking, shoal: Shoal) -> None:
    page = looking.view("swarm")
    nodes = page.locator("g.node:not(.me)")
    expect(nodes).to_have_count(3)
    assert set(nodes.evaluate_all("all => all.map(one => one.dataset.peer)")) == set(shoal.pids)
    expect(page.locator(".run[data-replicas='1']")).to_have_attribute("data-blocks", "0:30")
    rows = page.locator("tbody tr")
    first = rows.nth(0).get_attribute("data-peer")
    page.get_by_role("button", name="Blocks").click()
    expect(page.locator("th[aria-sort='descending']")).to_contain_text("Blocks")
    assert rows.nth(2).get_attribute("data-peer") == first
    looking.shot("swarm")


def test_a_request_shows_where_its_time_went(looking: Looking) -> None:
    ask(looking.page, "What is a shoal?")
    answered(looking.page)
    page = looking.view("requests")
    card = page.locator("article[data-request]").first
    expect(card.locator(".state")).to_have_text("done")
    expect(card.locator(".part.compute")).to_have_count(3)
    card.locator("summary").click()
    expect(card.locator("tbody tr")).to_have_count(3)
    looking.shot("requests")


def test_a_swarm_that_no_other_machine_can_reach_invites_none(looking: Looking, shoal: Shoal) -> None:
    page = looking.view("add")
    expect(page.get_by_role("heading", name="This swarm is limited to one machine")).to_be_visible()
    expect(page.get_by_text("shoal1-")).to_have_count(0)


def test_another_machine_is_invited(looking: Looking, shoal: Shoal) -> None:
    """The nodes of the tests listen on loopback; the gateway says here that others can reach them."""
    looking.page.route(
        "**/api/invite", lambda route: route.fulfill(json=route.fetch().json() | {"here_only": False})
    )
    page = looking.view("add")
    expect(page.get_by_label("the command that joins", exact=True)).to_contain_text(
        re.compile(r"shoal join shoal1-\w+")
    )
    picture = page.get_by_alt_text("The invite as a QR code")
    looking.until(lambda: picture.evaluate("image => image.complete && image.naturalWidth") > 0, 5)
    looking.shot("add")


def test_the_lines_for_apps_name_this_gateway(looking: Looking, shoal: Shoal) -> None:
    page = looking.view("connect")
    for app in ("curl", "Python", "JavaScript", "Environment"):
        lines = page.get_by_label(f"the lines for {app}", exact=True)
        expect(lines).to_contain_text(f"{shoal.gateway.url}v1")
        expect(lines).to_contain_text("SmolLM2-135M-Instruct")
    for app in APPS:
        lines = page.get_by_label(f"the lines for {app.title}", exact=True)
        expect(lines).to_contain_text(shoal.gateway.url.removesuffix("/"), timeout=WITHIN_MS)
        expect(lines).to_contain_text("SmolLM2-135M-Instruct")
        expect(page.get_by_label(f"the command for {app.title}", exact=True)).to_have_text(
            f"shoal launch {app.name}"
        )


def test_health_shows_what_the_doctor_found(looking: Looking) -> None:
    page = looking.view("health")
    for name in ("python", "memory", "disk", "clock"):
        expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible(timeout=WITHIN_MS)


@pytest.mark.parametrize(
    ("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)]
)
def test_nobody_is_kept_out_by_contrast_names_or_width(
    browser: Browser, shoal: Shoal, scheme: str, width: int
) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 820}, color_scheme=scheme, reduced_motion="reduce"
    )
    page = context.new_page()
    seen = Looking(page)
    page.goto(shoal.gateway.url)
    for view in VIEWS:
        seen.view(view)
        page.wait_for_timeout(500)
        found = page.evaluate(f"{AXE.read_text()}; axe.run(document)")
        wrong = [rule for rule in found["violations"] if rule["impact"] in ("serious", "critical")]
        assert wrong == [], json.dumps(wrong, indent=1)
        assert len(found["passes"]) > 5
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{view} is too wide"
        seen.shot(f"{view}-{scheme}-{width}")
    context.close()
    assert seen.said == []


def test_everything_is_reached_with_the_keyboard_alone(looking: Looking) -> None:
    page = looking.page
    reached: set[str] = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "(e => e.getAttribute('aria-label') || e.id || e.innerText.trim())(document.activeElement)"
            )
        )
    assert {"model", "question", "Conversations", "Swarm"} <= {name.split("\n")[0] for name in reached}, (
        reached
    )


def test_what_peers_and_models_are_called_does_no_harm(looking: Looking, shoal: Shoal) -> None:
    page = looking.page
    swarm = page.request.get(f"{shoal.gateway.url}api/swarm").json()
    for peer in swarm["peers"]:
        peer |= {"agent": HARM, "model": HARM, "format": HARM, "peer": peer["peer"][:-4] + HARM}
    swarm |= {"swarm": HARM, "models": [model | {"id": HARM} for model in swarm["models"]]}
    told = dict.fromkeys(("name", "message", "check", "next_command"), HARM)
    health = {"ok": False, "checks": [told | {"ok": False, "severity": "error"}]}
    events = {"swarm": swarm, "health": health}
    body = "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in events.items())
    page.route("**/api/events", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    page.reload()
    for view in VIEWS:
        looking.view(view)
        page.wait_for_timeout(300)
        assert page.evaluate("typeof harmed") == "undefined"
        assert page.locator("main script, main img[onerror]").count() == 0
    page.unroute_all(behavior="wait")  # the page may just be asking again


def test_what_an_answer_says_does_no_harm(looking: Looking) -> None:
    text = (
        f"{HARM} [link](javascript:harmed=1) ![picture](http://192.0.2.1/x.png) <style>*{{color:red}}</style>"
        '<a href="x" onclick="harmed=1" style="color:red">a</a>'
        "\n\n```html\n<script>harmed=1</script>\n```\n"
    )
    chunks = [{"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}]
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    page = looking.page
    page.route("**/v1/chat/completions", lambda r: r.fulfill(content_type="text/event-stream", body=body))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    ask(page, "x")
    answered(page)
    prose = page.locator(".prose")
    expect(prose).to_contain_text("<script>harmed=1</script>")
    assert prose.locator("script, img, style, [onclick], [style], a[href^=javascript]").count() == 0
    assert page.evaluate("typeof harmed") == "undefined"
    assert not [url for url in asked if "192.0.2.1" in url]


def test_the_policy_stops_a_script_that_would_come_in_all_the_same(browser: Browser, shoal: Shoal) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(shoal.gateway.url)
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=nowhere onerror=\"harmed=1\">')")
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'harmed=1'}))")
    page.wait_for_timeout(300)
    assert page.evaluate("typeof harmed") == "undefined"
    context.close()
