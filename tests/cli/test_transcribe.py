"""`shoal transcribe` and `shoal run` over nodes in memory that serve models with an encoder and a decoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from shoal.cli.ask import AnswerRequest, ask
from shoal.cli.audio import transcribe
from shoal.testing.seq2seq import write_speech_to_text, write_text_to_text
from shoal.testing.swarm import memory_swarm
from shoal.types import Span
from tests.cli.conftest import Shoal
from tests.client.test_text_to_text import TEXT, expected
from tests.client.test_transcribe import SHORT, sound, wav


def serving(home: Path, folder: Path, spans: list[Span]):
    """What runs a command's work in a swarm that serves a model."""

    def in_swarm(settings, use):
        async def go():
            async with memory_swarm(home, folder, spans) as swarm:
                return await use(swarm.client)

        return trio.run(go)

    return in_swarm


@pytest.fixture
def whisper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = write_speech_to_text(tmp_path / "whisper", **SHORT)
    spans = [Span(0, 5), Span(5, 8)]
    monkeypatch.setattr(transcribe, "in_swarm", serving(tmp_path / "swarm", folder, spans))
    return str(folder)


def test_each_window_is_a_line(whisper: str, shoal: Shoal, tmp_path: Path) -> None:
    file = tmp_path / "speech.wav"
    file.write_bytes(wav(sound(3)))
    ran = shoal("transcribe", str(file), "--model", whisper, "--language", "en")
    assert ran.code == 0, ran.err
    assert ran.out.strip()
    assert "en, 2 windows, 3.0 s of sound in" in ran.err
    found = shoal("transcribe", str(file), "--model", whisper, "--language", "en", "--json").data
    assert [(s["start"], s["end"]) for s in found["segments"]] == [(0.0, 2.0), (2.0, 3.0)]
    assert found["text"] == " ".join(ran.out.split("\n")).strip()
    file.write_bytes(b"ID3 and so on")
    ran = shoal("transcribe", str(file), "--model", whisper)
    assert (ran.code, "ffmpeg" in ran.err) == (2, True)


def test_a_recording_that_is_not_there_is_refused_before_anything_is_asked(shoal: Shoal) -> None:
    ran = shoal("transcribe", "none.wav", "--model", "whisper")
    assert (ran.code, "No such file" in ran.err) == (2, True)


async def test_shoal_run_answers_with_a_model_that_reads_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_text_to_text(tmp_path / "t5")
    async with memory_swarm(tmp_path, folder, [Span(0, 8), Span(8, 12)]) as swarm:
        answer = await ask(swarm.client, AnswerRequest(str(folder), raw=TEXT, max_tokens=8), stream=True)
    assert answer.token_ids == expected(folder, answer.prompt_token_ids, 8)
    assert capsys.readouterr().out.startswith(answer.text)
