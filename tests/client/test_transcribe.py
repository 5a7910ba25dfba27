"""Whisper over a swarm writes down what it writes down in transformers, whichever hop is lost on the way."""

from __future__ import annotations

import io
import json
import wave

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from shoal.client import swarm as swarm_module
from shoal.client.graph.sounds import sound_array
from shoal.client.seq2seq.sound import RATE, Sound, read_recording
from shoal.client.seq2seq.speech import Suppression, speech_settings
from shoal.client.seq2seq.transcribe import log_mel
from shoal.errors import BadWeights, UsageError
from shoal.models.checkpoint.checkpoint import read_encoder_decoder
from shoal.models.graph.manifest import GraphValue
from shoal.models.graph.preprocess import Preprocess
from shoal.models.store.local_model import LocalModel
from shoal.testing.checkpoints import write_checkpoint
from shoal.testing.seq2seq import LANGUAGES, NO_TIMESTAMPS, START, write_speech_to_text
from shoal.testing.swarm import memory_swarm
from shoal.types import Digest, ModelShape, Span

HOPS = [Span(0, 3), Span(3, 6), Span(6, 7), Span(7, 8)]
"""Of 4 blocks of an encoder and 4 of a decoder: three hops decode, and one is on both sides."""
END = 2
SHORT = {"max_source_positions": 100}
"""A model that hears 2 s at a time: as Whisper otherwise, and quick."""


def sound(seconds, rate=RATE, seed=0):
    """Noise that comes and goes, over a tone."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).standard_normal(len(time)) * np.sin(3 * time)
    return Sound((0.2 * np.sin(440 * time) + 0.1 * noise).astype(np.float32), rate)


def wav(made, width=2, channels=1):
    """As a WAV file."""
    whole = np.round(made.samples.astype(np.float64) * (2 ** (8 * width - 1) - 1)).astype("<i4")
    if width == 1:
        whole += 128
    raw = np.repeat(whole, channels).view(np.uint8).reshape(-1, 4)[:, :width].tobytes()
    file = io.BytesIO()
    with wave.open(file, "wb") as opened:
        opened.setnchannels(channels)
        opened.setsampwidth(width)
        opened.setframerate(made.rate)
        opened.writeframes(raw)
    return file.getvalue()


@torch.inference_mode()
def expected(folder, samples, seconds=30, language="en", task="transcribe"):
    """The tokens of one window, by transformers alone."""
    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    extract = WhisperFeatureExtractor(chunk_length=seconds)
    features = torch.from_numpy(extract(samples, sampling_rate=RATE, return_tensors="np").input_features)
    asked = {"language": language, "task": task, "return_timestamps": False}
    return said(model.generate(features, do_sample=False, **asked)[0].tolist())


def said(tokens):
    """Without the end, in place of which transformers may have padding, or nothing."""
    return [token for token in tokens if token not in (0, END)]


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    return write_speech_to_text(tmp_path_factory.mktemp("whisper") / "whisper", **SHORT)


async def test_three_hops_of_a_decoder_write_down_what_transformers_does(tmp_path, autojump_clock):
    folder = write_speech_to_text(tmp_path / "whisper")  # 1,500 rows of 30 s, as Whisper has them
    made = sound(5)
    async with memory_swarm(tmp_path, folder, HOPS) as swarm:
        seen = []
        found = await swarm.client.transcribe(str(folder), made, language="en", follow=seen.append)
        assert [hop.span for hop in seen[0].ring.route] == [Span(4, 6), Span(6, 7), Span(7, 8)]
    tokens = said(found.segments[0].token_ids)
    assert tokens == expected(folder, made.samples)
    assert len(set(tokens)) > 4
    assert (found.language, found.seconds, len(found.segments)) == ("en", 5.0, 1)
    assert found.text


async def test_a_hop_that_is_killed_changes_no_token(tmp_path, whisper, autojump_clock):
    spares, made = [Span(4, 6), Span(6, 8)], sound(4)
    sessions, lost = [], []
    async with memory_swarm(tmp_path, whisper, [Span(0, 4), *spares, *spares]) as swarm:

        def kill(session):
            sessions.append(session)
            if len(sessions) == 2:  # the decoder is open, and is about to have what the encoder gave
                peer = session.ring.route[1].address.peer
                swarm.kill(next(i for i, network in enumerate(swarm.networks) if network.peer == peer))
                lost.append(peer)

        found = await swarm.client.transcribe(str(whisper), made, language="de", follow=kill)
    assert [change.lost for session in sessions for change in session.reroutes] == [tuple(lost)]
    windows = [made.samples[: 2 * RATE], made.samples[2 * RATE :]]
    tokens = [said(segment.token_ids) for segment in found.segments]
    assert tokens == [expected(whisper, window, 2, "de") for window in windows]


async def test_a_long_recording_is_heard_window_by_window_in_any_language(tmp_path, whisper, autojump_clock):
    made, heard = sound(5), []
    async with memory_swarm(tmp_path, whisper, [Span(0, 8)]) as swarm:
        name = str(whisper)
        found = await swarm.client.transcribe(name, wav(made), language="fr", heard=heard.append)
        windows = [Sound(made.samples[i * 2 * RATE : (i + 1) * 2 * RATE], RATE) for i in range(3)]
        alone = await swarm.client.transcribe(name, wav(windows[1]), language="fr")
        heard_as = await swarm.client.transcribe(name, windows[0])
        translated = await swarm.client.transcribe(name, windows[0], language="fr", task="translate")
        options = {"language": "de", "temperature": 1.0, "seed": 3}
        drawn = [await swarm.client.transcribe(name, windows[0], **options) for _ in range(2)]
        await refusals(swarm.client, name, tmp_path)
    assert [(segment.start, segment.end) for segment in found.segments] == [(0, 2), (2, 4), (4, 5)]
    assert found.segments[1].token_ids == alone.segments[0].token_ids
    assert found.text == " ".join(segment.text.strip() for segment in found.segments)
    assert heard == list(found.segments)
    model = WhisperForConditionalGeneration.from_pretrained(whisper, dtype=torch.float32).eval()
    extract = WhisperFeatureExtractor(chunk_length=2)
    features = extract(windows[0].samples, sampling_rate=RATE, return_tensors="pt").input_features
    with torch.inference_mode():
        token = int(model.detect_language(features)[0])
    assert LANGUAGES[f"<|{heard_as.language}|>"] == token
    assert translated.segments[0] != found.segments[0]
    assert drawn[0] == drawn[1]


async def refusals(client, name, folder):
    """What cannot be is refused before anything is sent."""
    with pytest.raises(UsageError, match="does not know the language 'xx': it knows de, en, fr"):
        await client.transcribe(name, sound(1), language="xx")
    with pytest.raises(UsageError, match="cannot be read"):
        await client.transcribe(name, b"ID3 an MP3")
    with pytest.raises(UsageError, match="transcribe or translate"):
        await client.transcribe(name, sound(1), task="sing")
    with pytest.raises(UsageError, match="answers no text"):
        async for _ in client.generate(name, "hello"):
            pass
    llama = write_checkpoint(folder / "llama")
    with pytest.raises(UsageError, match="hears nothing"):
        await client.transcribe(str(llama), sound(1))
    with pytest.raises(UsageError, match="takes sound"):
        async with client.session(name, source=[1, 2]):
            pass


def test_a_model_of_one_language_needs_none(tmp_path):
    folder = write_speech_to_text(tmp_path / "english", multilingual=False, **SHORT)
    shape = ModelShape("english", Digest("sha256:0"), 8, 64, 164, 300)
    local = LocalModel("english", folder, shape.digest, shape, 0, "F32", "folder:x")
    settings = speech_settings(local, read_encoder_decoder(folder))
    assert settings.prompt(None, "transcribe") == [START, NO_TIMESTAMPS]
    with pytest.raises(UsageError, match="knows one language"):
        settings.prompt("de", "transcribe")
    with pytest.raises(UsageError, match="knows one language"):
        settings.prompt(None, "translate")
    said_of_it = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(said_of_it | {"is_multilingual": True}))
    with pytest.raises(BadWeights, match="does not say the tokens of languages"):
        speech_settings(local, read_encoder_decoder(folder))


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_every_width_of_samples_is_read(width):
    made = sound(0.5)
    found = read_recording(wav(made, width, channels=2))
    assert found.rate == RATE
    np.testing.assert_allclose(found.samples, made.samples, atol=2.0 ** (2 - 8 * width) + 1e-6)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_other_rates_become_the_models_without_a_seam(rate):
    """A tone stays the tone that it is, from one window to the next."""
    tone = [np.sin(2 * np.pi * 440 * np.arange(round(3.5 * r)) / r).astype(np.float32) for r in (rate, RATE)]
    windows = list(Sound(tone[0], rate).windows(1))
    assert [len(window) for window in windows] == [RATE] * 3 + [RATE // 2]
    joined = np.concatenate(windows)
    inside = slice(RATE // 10, -RATE // 10)  # nothing is known of what would be before and behind it all
    np.testing.assert_allclose(joined[inside], tone[1][inside], atol=0.02)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "ends too early"),
        (b"RIFF\x04\x00\x00\x00WAVE", "missing"),
        (wav(sound(0.1))[:20], "ends too early"),
        (b"RIFF\x0c\x00\x00\x00WAVELIST\x00\x00\x10\x00", "ends too early"),
        (wav(Sound(np.zeros(0, np.float32), RATE)), "no samples"),
        (wav(Sound(np.zeros(9, np.float32), 100)), "at 100 Hz"),
        (wav(sound(0.1)).replace(b"\x01\x00\x01\x00", b"\x03\x00\x01\x00", 1), "unknown format"),
    ],
)
def test_what_is_no_recording_is_refused(data, why):
    with pytest.raises(UsageError, match=why) as refused:
        read_recording(data)
    assert "ffmpeg" in str(refused.value.next_command)


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x7FFFF000, 1 << 31])
def test_a_recording_of_a_pipe_whose_header_knows_no_length_is_read_to_its_end(length, tmp_path):
    made = sound(0.5)
    whole = wav(made)
    at = whole.index(b"data") + 4
    piped = whole[:4] + length.to_bytes(4, "little") + whole[8:at] + length.to_bytes(4, "little")
    piped += whole[at + 4 :]
    assert np.array_equal(read_recording(piped).samples, read_recording(whole).samples)
    (tmp_path / "piped.wav").write_bytes(piped)
    given = sound_array(tmp_path / "piped.wav", Preprocess(), GraphValue("sound", "float32", (-1,)))
    assert np.array_equal(given, read_recording(whole).samples)


def test_how_long_a_recording_is_is_counted_and_not_believed():
    whole = wav(sound(3))
    assert read_recording(whole, most_seconds=3).seconds == 3
    short = whole[: whole.index(b"data") + 4] + b"\xff" * 4 + whole[whole.index(b"data") + 8 :]
    for data in (whole, short):
        with pytest.raises(UsageError, match="is longer than 2 seconds"):
            read_recording(data, most_seconds=2)


async def test_a_session_has_room_for_what_was_heard_if_nothing_else_is_said(
    tmp_path, whisper, autojump_clock, monkeypatch
):
    monkeypatch.setattr(swarm_module, "DEFAULT_TOKENS", 32)  # fewer than the 100 rows of what is heard
    async with memory_swarm(tmp_path, whisper, [Span(0, 8)]) as swarm:
        features = log_mel(sound(2).samples, 80, 2)
        async with swarm.client.session(str(whisper), source=features) as session:
            logits = await session.step(session.prompt_of(()))
            assert session.room == 31
    assert logits.shape == (1, 300)  # after the first token, and not for each row of what was heard


def test_tokens_that_are_not_said_first_may_be_said_later():
    constraint = Suppression({1}, {2})
    assert constraint.allowed(4).tolist() == [True, False, False, True]
    constraint.accept(0)
    assert constraint.allowed(4).tolist() == [True, False, True, True]
