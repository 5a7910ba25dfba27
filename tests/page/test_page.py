"""The page in a real browser, before a real swarm: what a person sees, and what stays harmless."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from shoal.gateway.page.apps import APPS

from .conftest import Looking, Shoal

pytestmark = pytest.mark.swarm

AXE = Path(__file__).parents[2] / "page/node_modules/axe-core/axe.min.js"
VIEWS = ["chat", "swarm", "market", "requests", "add", "connect", "health"]
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


def looked_at(page: Page) -> dict[str, Any]:
    """What axe finds in what is shown now."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text())
    return page.evaluate("axe.run(document, {resultTypes: ['violations']})")  # of others it counts the rules


def clean(page: Page) -> None:
    """What is shown now keeps nobody out, on a telephone and on a large screen."""
    for width in (390, 1920):
        page.set_viewport_size({"width": width, "height": 820})
        found = looked_at(page)
        assert found["violations"] == [], json.dumps(found["violations"], indent=1)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


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


def test_a_question_is_edited_and_both_ways_of_the_conversation_stay(looking: Looking) -> None:
    page = looking.page
    ask(page, "Name one fish.", longest=8)
    answered(page)
    first = page.locator(".prose").inner_text()
    page.get_by_role("button", name="Edit the question").focus()
    page.keyboard.press("Enter")
    field = page.get_by_label("The question, edited")
    expect(field).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Edit the question")).to_be_focused()
    page.keyboard.press("Enter")
    field.fill("Name one whale.")
    page.keyboard.press("Enter")
    expect(page.get_by_label("You").get_by_text("Name one whale.")).to_be_visible()
    answered(page)
    versions = page.get_by_role("group", name="Versions of this question")
    expect(versions).to_contain_text("2 of 2")
    versions.get_by_role("button", name="The question before").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_label("You").get_by_text("Name one fish.")).to_be_visible()
    assert page.locator(".prose").inner_text() == first
    page.get_by_role("button", name="Regenerate").click()
    answers = page.get_by_role("group", name="Versions of this answer")
    expect(answers).to_contain_text("2 of 2", timeout=WITHIN_MS)
    page.reload()
    page.get_by_role("button", name="Conversations").click()
    page.get_by_role("button", name=re.compile("^Name one fish.")).click()
    expect(page.get_by_role("group", name=re.compile("Versions"))).to_have_count(2)
    clean(page)
    looking.shot("branches")


def test_a_conversation_has_its_own_instructions_and_sampling(looking: Looking) -> None:
    page, bodies = looking.page, []
    page.on("request", lambda r: bodies.append(r.post_data_json) if "completions" in r.url else None)
    page.get_by_role("button", name="How to answer").click()
    page.get_by_label("Instructions").fill("Answer in one word.")
    page.get_by_label("Top p").fill("0.5")
    clean(page)
    looking.shot("settings")
    page.keyboard.press("Escape")
    ask(page, "Hello?", longest=4)
    answered(page)
    page.get_by_role("button", name="New conversation").click()
    ask(page, "And now?", longest=5)
    answered(page)
    assert [body.get("top_p") for body in bodies] == [0.5, None]
    assert [body["messages"][0]["role"] for body in bodies] == ["system", "user"]
    assert [body["max_tokens"] for body in bodies] == [4, 5]
    page.get_by_role("button", name="Conversations").click()
    page.get_by_role("button", name=re.compile("^Hello")).click()
    page.get_by_role("button", name="How to answer").click()
    expect(page.get_by_label("Instructions")).to_have_value("Answer in one word.")
    expect(page.get_by_label("Longest answer")).to_have_value("4")


def test_text_files_go_with_a_question(looking: Looking, tmp_path: Path) -> None:
    page, bodies = looking.page, []
    page.on("request", lambda r: bodies.append(r.post_data_json) if "completions" in r.url else None)
    (tmp_path / "notes.txt").write_text("The fish is a cod.")
    (tmp_path / "more.txt").write_text("Never mind.")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff")
    chooser = page.get_by_label("Attach texts and pictures", exact=True)
    chooser.set_input_files(tmp_path / "picture.png")
    expect(page.get_by_text("takes text only: choose a model that looks at pictures")).to_be_visible()
    (tmp_path / "odd.bin").write_bytes(b"\x89\xff")
    chooser.set_input_files(tmp_path / "odd.bin")
    expect(page.get_by_text("odd.bin is no text in UTF-8")).to_be_visible()
    chooser.set_input_files([tmp_path / "notes.txt", tmp_path / "more.txt"])
    attached = page.get_by_role("list", name="Attached files").get_by_role("listitem")
    expect(attached).to_have_text(["notes.txt", "more.txt"])
    page.get_by_role("button", name="Remove more.txt").focus()
    page.keyboard.press("Enter")
    expect(attached).to_have_count(1)
    clean(page)
    looking.shot("attached")
    ask(page, "Which fish?", longest=4)
    answered(page)
    (question,) = bodies[0]["messages"]
    assert question["content"] == "Which fish?\n\nnotes.txt:\n```\nThe fish is a cod.\n```"
    expect(attached).to_have_count(0)


def test_conversations_are_searched_exported_and_imported(looking: Looking, tmp_path: Path) -> None:
    page = looking.page
    for question in ("Tell me of cod.", "Tell me of eels."):
        page.get_by_role("button", name="New conversation").click(force=True)
        ask(page, question, longest=3)
        answered(page)
    page.get_by_role("button", name="Conversations").click()
    page.get_by_label("Search the conversations").fill("EELS tell")
    listed = page.locator("#history li")
    expect(listed).to_have_count(1)
    expect(listed).to_contain_text("eels")
    page.get_by_label("Search the conversations").fill("whale")
    expect(page.get_by_text("None has all of these words.")).to_be_visible()
    page.get_by_label("Search the conversations").fill("")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export all").click()
    file = tmp_path / "conversations.json"
    download.value.save_as(file)
    assert len(json.loads(file.read_text())["conversations"]) == 2
    for question in ("cod", "eels"):
        page.get_by_role("button", name=f"Forget: Tell me of {question}.").click()
    (tmp_path / "odd.json").write_text('{"kind": "other"}')
    chooser = page.get_by_label("Import", exact=True)
    chooser.set_input_files(tmp_path / "odd.json")
    expect(page.get_by_text("This file holds no conversations of Shoal")).to_be_visible()
    chooser.set_input_files(file)
    expect(page.get_by_text("2 conversations were imported.")).to_be_visible()
    expect(listed).to_have_count(2)
    clean(page)
    looking.shot("conversations")


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


@pytest.mark.parametrize(("scheme", "widths"), [("light", (1280, 390)), ("dark", (1920, 390))])
def test_nobody_is_kept_out_by_contrast_names_or_width(
    browser: Browser, shoal: Shoal, scheme: str, widths: tuple[int, ...]
) -> None:
    context = browser.new_context(color_scheme=scheme, reduced_motion="reduce")
    page = context.new_page()
    seen = Looking(page)
    page.goto(shoal.gateway.url)
    for view in VIEWS:
        seen.view(view)
        page.wait_for_timeout(500)
        for width in widths:
            page.set_viewport_size({"width": width, "height": 820})
            found = looked_at(page)
            wrong = [rule for rule in found["violations"] if rule["impact"] in ("serious", "critical")]
            assert wrong == [], f"{view}, {width}: {json.dumps(wrong, indent=1)}"
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
        peer |= {
            "agent": HARM,
            "model": HARM,
            "format": HARM,
            "operator": HARM,
            "peer": peer["peer"][:-4] + HARM,
        }
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
