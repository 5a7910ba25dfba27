"""Pictures beside a question: a real gateway before a model that looks at them, and a real browser."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal
from playwright.sync_api import Browser, expect

from shoal.testing.seeing import picture, write_seeing
from shoal.types import Span
from tests.gateway.conftest import MODULES, served

from .conftest import Looking
from .test_page import answered, ask, clean

pytestmark = pytest.mark.swarm


@pytest.fixture
def sighted(browser: Browser, tmp_path: Path) -> Iterator[Looking]:
    model = write_seeing(tmp_path / "looks", "llava")
    with (
        start_blocking_portal("trio") as portal,
        portal.wrap_async_context_manager(served(tmp_path, model, [Span(0, 6)], nodes=MODULES)) as gateway,
    ):
        context = browser.new_context(viewport={"width": 1280, "height": 820})
        seen = Looking(context.new_page())
        seen.page.goto(gateway.url)
        seen.page.locator("select#model option", has_text="looks").first.wait_for(state="attached")
        yield seen
        context.close()
        assert seen.said == []


def test_a_model_that_looks_at_pictures_is_shown_them(sighted: Looking, tmp_path: Path) -> None:
    page, bodies = sighted.page, []
    page.on("request", lambda r: bodies.append(r.post_data_json) if "completions" in r.url else None)
    small = tmp_path / "small.png"
    small.write_bytes(picture(1))
    (tmp_path / "odd.png").write_bytes(b"\x89PNG")
    chooser = page.get_by_label("Attach texts and pictures", exact=True)
    chooser.set_input_files(tmp_path / "odd.png")
    expect(page.get_by_text("odd.png cannot be read as a picture.")).to_be_visible()
    chooser.set_input_files(small)
    expect(page.get_by_role("list", name="Attached files").get_by_role("listitem")).to_have_text(
        ["small.png"]
    )
    clean(page)
    ask(page, "What is this?", longest=4)
    answered(page)
    url = f"data:image/png;base64,{base64.b64encode(small.read_bytes()).decode()}"
    shown = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}]
    assert bodies[0]["messages"] == [{"role": "user", "content": shown}]

    page.reload()  # and it is kept
    page.get_by_role("button", name="Conversations").click()
    page.get_by_role("button", name="What is this?").first.click()
    drawn = page.get_by_alt_text("Picture 1 of the question")
    expect(drawn).to_be_visible()
    assert drawn.evaluate("one => one.naturalWidth") > 0
    clean(page)
    sighted.shot("picture")


def test_a_large_picture_is_sent_no_larger_than_a_model_looks_at(sighted: Looking) -> None:
    page, bodies = sighted.page, []
    page.on("request", lambda r: bodies.append(r.post_data_json) if "completions" in r.url else None)
    page.evaluate("""async () => {
        const canvas = new OffscreenCanvas(3000, 1500)
        canvas.getContext('2d').fillRect(0, 0, 3000, 700)
        const file = new File([await canvas.convertToBlob()], 'large.png', { type: 'image/png' })
        const clipboardData = new DataTransfer()
        clipboardData.items.add(file)
        const paste = new ClipboardEvent('paste', { clipboardData, bubbles: true, cancelable: true })
        document.querySelector('#question').dispatchEvent(paste)
    }""")
    expect(page.get_by_text("large.png is attached.")).to_be_visible()
    ask(page, "And this?", longest=4)
    answered(page)
    (shown, _) = bodies[0]["messages"][0]["content"]
    assert shown["image_url"]["url"].startswith("data:image/jpeg;base64,")
    size = page.get_by_alt_text("Picture 1 of the question").evaluate(
        "one => [one.naturalWidth, one.naturalHeight]"
    )
    assert size == [1024, 512]
