"""Images over HTTP: in the words of each API, through OpenAI's own client, and what is refused."""

from __future__ import annotations

import base64
import json
import shutil

import openai
import pytest
import trio

from shoal.gateway.api.images import GivenImage
from shoal.gateway.errors import BadRequest
from shoal.models.checkpoint.manifest import PICTURE_FILES
from shoal.testing.seeing import ROW, picture, whole_answer, write_seeing
from shoal.types import Span

from .conftest import MODULES, served, user

IMAGE = base64.b64encode(picture(1)).decode()
OTHER = base64.b64encode(picture(2)).decode()
URL = f"data:image/png;base64,{IMAGE}"
WHAT = {"type": "text", "text": "what is this?"}


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    return write_seeing(tmp_path_factory.mktemp("seeing") / "looks", "llava")


def shown(url=URL):
    return user([{"type": "image_url", "image_url": {"url": url, "detail": "auto"}}, WHAT])


@pytest.mark.parametrize(("kind", "rows"), [("llava", 16), ("qwen2_vl", 6)])
async def test_every_api_shows_the_image_and_answers_alike(tmp_path, seeing, kind, rows):
    seeing = seeing if kind == "llava" else write_seeing(tmp_path / "model" / "looks", kind)

    def use(client):
        base = {"model": "looks", "temperature": 0, "max_tokens": 8, "logprobs": True}
        whole = client.chat.completions.create(messages=[shown()], **base)
        again = client.chat.completions.create(messages=[shown()], **base)
        other = client.chat.completions.create(
            messages=[shown(f"data:image/png;base64,{OTHER}")], stream=False, **base
        )
        return whole, again, other

    async with served(tmp_path, seeing, [Span(0, 3), Span(3, 6)], nodes=MODULES) as gateway:

        def run():
            with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
                return use(client)

        whole, again, other = await trio.to_thread.run_sync(run)
        tokens = (await gateway.post("/tokenize", messages=[shown()])).json()["tokens"]
        source = {"type": "base64", "media_type": "image/png", "data": IMAGE}
        anthropic = await gateway.post(
            "/v1/messages", messages=[user([{"type": "image", "source": source}, WHAT])]
        )
        counted = await gateway.http.post(
            "/v1/messages/count_tokens",
            json={"model": "looks", "messages": [user([{"type": "image", "source": source}, WHAT])]},
        )
        asked = user(
            [{"type": "input_image", "image_url": URL}, {"type": "input_text", "text": WHAT["text"]}]
        )
        responses = await gateway.post("/v1/responses", input=[asked], max_output_tokens=8)
        greedy = {"temperature": 0, "num_predict": 8}
        ollama = await gateway.post(
            "/api/chat", messages=[user(WHAT["text"]) | {"images": [IMAGE]}], stream=False, options=greedy
        )
        generated = await gateway.post(
            "/api/generate", prompt=WHAT["text"], images=[IMAGE], stream=False, options=greedy
        )
        show = await gateway.post("/api/show")
    expected = whole_answer(seeing, tokens, [picture(1)], 8)
    assert tokens.count(ROW) == rows
    assert whole.usage.prompt_tokens == len(tokens)
    assert len(whole.choices[0].logprobs.content) == len(expected)
    text = whole.choices[0].message.content
    assert text and again.choices[0].message.content == text
    assert again.usage.prompt_tokens_details.cached_tokens == len(tokens) - 1
    # The other image stands behind the same words: only those are found in the cache, which is too few.
    assert other.usage.prompt_tokens_details.cached_tokens == 0
    assert other.choices[0].message.content != text
    assert "".join(block["text"] for block in anthropic.json()["content"]) == text
    assert anthropic.json()["usage"]["input_tokens"] + anthropic.json()["usage"][
        "cache_read_input_tokens"
    ] == len(tokens)
    assert counted.json() == {"input_tokens": len(tokens)}
    assert responses.json()["output"][-1]["content"][0]["text"] == text
    assert ollama.json()["message"]["content"] == text
    assert generated.json()["response"] == text
    assert "vision" in show.json()["capabilities"]


async def test_what_is_no_image_is_named_by_its_field(tmp_path, seeing):
    async with served(tmp_path, seeing, [Span(0, 6)], nodes=MODULES) as gateway:
        for url, told in [
            (
                "https://example.org/cat.png",
                "messages.0.content.0 is 'https://example.org/cat.png': no image is",
            ),
            ("data:image/webp;base64,aGk=", "messages.0.content.0 is 'image/webp', which is not read here"),
            ("data:image/png;base64,?", "messages.0.content.0 is not base64"),
            ("data:image/png;base64,aGk=", "image 0 cannot be read as a picture"),
        ]:
            answer = await gateway.post("/v1/chat/completions", messages=[shown(url)])
            assert answer.status_code == 400, url
            assert told in answer.json()["error"]["message"]
        many = user([shown()["content"][0]] * 9)
        answer = await gateway.post("/v1/chat/completions", messages=[many])
        assert answer.status_code == 400
        assert "9 images are given, and 8 are the most of one request (images)" in answer.text


async def test_a_model_of_text_is_shown_none_in_any_api(gateway):
    source = {"type": "base64", "media_type": "image/png", "data": IMAGE}
    for path, fields, where in [
        ("/v1/chat/completions", {"messages": [shown()]}, "messages.0.content.0"),
        ("/v1/messages", {"messages": [user([{"type": "image", "source": source}])]}, "messages.0.content.0"),
        (
            "/v1/responses",
            {"input": [user([{"type": "input_image", "image_url": URL}])]},
            "input.0.content.0",
        ),
        ("/api/chat", {"messages": [user("a") | {"images": [IMAGE]}]}, "messages.0.images.0"),
        ("/api/generate", {"prompt": "a", "images": [IMAGE]}, "images.0"),
    ]:
        answer = await gateway.post(path, **fields)
        assert answer.status_code == 400, path
        assert f"this model takes text only; {where} is an image" in answer.text


async def test_a_tower_of_which_no_file_says_how_it_looks_is_no_fault_of_the_swarm(tmp_path, seeing):
    copy = tmp_path / "looks"
    shutil.copytree(seeing, copy)
    for file in PICTURE_FILES:
        (copy / file).unlink(missing_ok=True)
    async with served(tmp_path, copy, [Span(0, 6)], nodes=MODULES) as gateway:
        image = await gateway.post("/v1/chat/completions", messages=[shown()])
        text = await gateway.post("/v1/chat/completions", messages=[user("a")], max_tokens=1)
        show = await gateway.post("/api/show")
    assert image.status_code == 400
    assert "no file says how they become numbers" in image.json()["error"]["message"]
    assert image.json()["error"]["param"] == "messages.0.content.0"
    assert text.status_code == 200
    assert show.json()["capabilities"] == ["completion", "tools"]


async def test_nor_is_a_file_that_says_what_cannot_be(tmp_path, seeing):
    copy = tmp_path / "looks"
    shutil.copytree(seeing, copy)
    file = next(copy / name for name in PICTURE_FILES if (copy / name).exists())
    file.write_text(json.dumps(json.loads(file.read_text()) | {"size": {"height": 1 << 30, "width": 8}}))
    async with served(tmp_path, copy, [Span(0, 6)], nodes=MODULES) as gateway:
        image = await gateway.post("/v1/chat/completions", messages=[shown()])
    assert (image.status_code, image.json()["error"]["param"]) == (400, "messages.0.content.0")
    assert "pictures whose size is" in image.json()["error"]["message"]


@pytest.mark.parametrize(
    "url", ["", "data:", "data:image/png;base64", "data:image/png,aGk=", "file:///etc/passwd", "aGk="]
)
def test_only_a_data_url_in_base64_holds_an_image(url):
    with pytest.raises(BadRequest, match="no image is fetched from elsewhere"):
        GivenImage.of_url("here", url).decoded()
    assert GivenImage.of_url("here", "data:image/jpeg;charset=utf-8;base64,aGk=").decoded() == b"hi"
