"""Recordings and T5 over HTTP: OpenAI's own client, unchanged, and what others may send."""

from __future__ import annotations

from functools import partial

import httpx
import openai
import pytest
from anyio.from_thread import start_blocking_portal

from shoal.client.seq2seq.sound import read_recording
from shoal.gateway.audio import exchange, routes
from shoal.testing.seq2seq import write_speech_to_text, write_text_to_text
from shoal.types import Span
from tests.client.test_text_to_text import TEXT
from tests.client.test_text_to_text import expected as written_by_t5
from tests.client.test_transcribe import SHORT, expected, sound, wav

from .conftest import MODULES, served, user


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    return write_speech_to_text(tmp_path_factory.mktemp("whisper") / "whisper", **SHORT)


@pytest.fixture(scope="module")
def hearing(tmp_path_factory, whisper):
    """A gateway before two nodes that serve a model of speech, in a thread of its own."""
    spans, home = [Span(0, 6), Span(6, 8)], tmp_path_factory.mktemp("hearing")
    with (
        start_blocking_portal("trio") as portal,
        portal.wrap_async_context_manager(served(home, whisper, spans, nodes=MODULES)) as found,
    ):
        yield found


@pytest.fixture(scope="module")
def reading(tmp_path_factory):
    """The same before nodes that serve a T5."""
    folder = write_text_to_text(tmp_path_factory.mktemp("t5") / "t5")
    spans, home = [Span(0, 8), Span(8, 12)], tmp_path_factory.mktemp("reading")
    with (
        start_blocking_portal("trio") as portal,
        portal.wrap_async_context_manager(served(home, folder, spans, nodes=MODULES)) as found,
    ):
        yield found, folder


def client_of(served):
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def post(served, path="transcriptions", file=None, **fields):
    data = {"model": served.model} | {name: str(value) for name, value in fields.items()}
    files = {"file": ("a.wav", wav(sound(1)) if file is None else file)}
    return httpx.post(f"{served.url}/v1/audio/{path}", data=data, files=files, timeout=30)


def test_openais_client_gets_what_transformers_writes_down(hearing, whisper):
    made, file = sound(2), ("speech.wav", wav(sound(2)))
    with client_of(hearing) as client:
        create = partial(client.audio.transcriptions.create, model=hearing.model, file=file, language="en")
        found = create()
        told = create(response_format="verbose_json")
        plain = create(response_format="text")
        translated = client.audio.translations.create(model=hearing.model, file=file)
    assert found.text == told.text == plain.strip()
    assert found.text
    assert found.usage.seconds == 2
    assert (told.language, told.duration, told.segments) == ("en", 2.0, None)
    assert translated.text != found.text
    answer = post(hearing, file=wav(made), language="en").json()
    # The encoder's hop, and the decoder's two, of which the first is the same node.
    spans = [(stage["start"], stage["end"]) for stage in answer["shoal"]["route"]]
    assert spans == [(0, 4), (4, 6), (6, 8)]
    codec = hearing.swarm.client._codecs[hearing.swarm.model.digest]
    rounded = read_recording(wav(made))  # to 16 bits: what the gateway hears, transformers is to hear, too
    assert found.text == codec.decode(expected(whisper, rounded.samples, 2)).strip()


def test_what_is_heard_is_counted_as_answers_are(hearing):
    post(hearing, language="en")
    figures = httpx.get(f"{hearing.url}/metrics").text
    assert 'shoal_requests_total{path="/v1/audio/transcriptions"}' in figures
    newest = hearing.gateway.records.shown()[0]
    assert (newest["state"], newest["prompt_tokens"], newest["tokens"] > 3) == ("done", 100, True)
    assert len(newest["route"]) == 3


def test_each_window_is_charged_for_once_it_is_heard(hearing, monkeypatch):
    limits, charged = hearing.gateway.desk.limits, []
    charge = limits.charge

    async def note(caller, tokens):
        charged.append(tokens)
        await charge(caller, tokens)

    monkeypatch.setattr(limits, "charge", note)
    answer = post(hearing, file=wav(sound(5)), language="en")
    assert answer.status_code == 200
    newest = hearing.gateway.records.shown()[0]
    assert charged[::2][:3] == [100] * 3  # of a recording of three windows, before the text of each
    assert sum(charged) == newest["prompt_tokens"] + newest["tokens"]


def test_a_recording_of_many_minutes_is_refused_whatever_its_bytes(hearing, monkeypatch):
    monkeypatch.setattr(exchange, "MAX_SECONDS", 2)
    answer = post(hearing, file=wav(sound(3, rate=4000), width=1))
    assert answer.status_code == 400
    assert "longer than 2 seconds" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"file": b""}, "file", "missing, empty, or no file"),
        ({"file": b"ID3 an MP3"}, None, "cannot be read"),
        ({"language": "xx"}, None, "does not know the language 'xx'"),
        ({"language": "e"}, "language", "at least 2"),
        ({"response_format": "srt"}, "response_format", "'json', 'text' or 'verbose_json'"),
        ({"temperature": 2}, "temperature", "1"),
        ({"temperature": "nan"}, "temperature", "finite"),
        ({"stream": "true"}, "stream", "false"),
        ({"prompt": "the sea"}, "prompt", "0"),
        ({"timestamp_granularities[]": "word"}, "timestamp_granularities[]", "without times"),
    ],
)
def test_what_cannot_be_heard_is_refused_in_openais_words(hearing, fields, param, said):
    answer = post(hearing, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert said in error["message"]


def test_other_bodies_are_refused(hearing, monkeypatch):
    url = f"{hearing.url}/v1/audio/transcriptions"
    assert httpx.post(url, json={"model": hearing.model}).status_code == 415
    assert httpx.post(url, data={"model": "whisper"}, files={"other": b"x"}).status_code == 400
    assert httpx.get(url).status_code == 405
    assert post(hearing, model="elsewhere").status_code == 404
    monkeypatch.setattr(routes, "MAX_FILE", 1000)
    monkeypatch.setattr(routes, "AROUND", 1000)
    assert post(hearing).status_code == 413
    monkeypatch.setattr(routes, "UPLOADS", 0)
    assert post(hearing).status_code == 429


def test_a_model_that_hears_answers_no_text_and_one_that_reads_hears_nothing(hearing, reading):
    for path, fields in (
        ("/v1/chat/completions", {"messages": [user("hello")]}),
        ("/v1/completions", {"prompt": "hello"}),
        ("/api/generate", {"prompt": "hello"}),
    ):
        body = {"model": hearing.model} | fields
        answer = httpx.post(hearing.url + path, json=body, timeout=30)
        assert answer.status_code == 400, path
        assert "answers no text" in answer.text
    answer = post(reading[0])
    assert answer.status_code == 400
    assert "hears nothing" in answer.text


def test_openais_client_gets_what_t5_writes_in_transformers(reading):
    gateway, folder = reading
    with client_of(gateway) as client:
        create = partial(client.completions.create, model=gateway.model, temperature=0, max_tokens=16)
        found = create(prompt=TEXT)
        several = create(prompt=[TEXT, "hello"], n=2)
        streamed = "".join(chunk.choices[0].text for chunk in create(prompt=TEXT, stream=True))
        said = client.chat.completions.create(
            model=gateway.model, messages=[user("hello")], temperature=0, max_tokens=8
        )
        with pytest.raises(openai.BadRequestError, match="does not continue"):
            create(prompt=TEXT, echo=True)
    codec = gateway.swarm.client._codecs[gateway.swarm.model.digest]
    ids = codec.encode(TEXT)
    assert found.choices[0].text == codec.decode(written_by_t5(folder, ids, 16))
    assert found.choices[0].text == streamed == several.choices[0].text == several.choices[1].text
    assert found.usage.prompt_tokens == len(ids)
    newest = gateway.gateway.records.shown()[0]
    assert len(newest["route"]) == len(newest["hops"]) == 3  # one of the encoder, two of the decoder
    assert min(hop["compute_ms"] for hop in newest["hops"]) > 0
    assert said.choices[0].message.content
    assert gateway.gateway.prefixes.kept == 0
