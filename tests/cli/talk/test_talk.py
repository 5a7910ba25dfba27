"""A conversation: questions, commands, Ctrl-C, errors, and the same through a pipe."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncGenerator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from shoal.cli.ask import AnswerRequest
from shoal.cli.chat.conversation import Conversation
from shoal.cli.chat.loop import Talk, stoppable
from shoal.client.answer import Answer, RouteStage
from shoal.client.generate import Delta
from shoal.client.ring.recovery import RouteChange
from shoal.client.swarm import Swarm
from shoal.errors import NoCoverage, PromptTooLong, ShoalError, UnknownModel
from shoal.types import Digest, ModelShape, PeerId, Span

SHAPE = ModelShape("fish", Digest("sha256:" + "0" * 64), 30, 64, 2048, 100)


class Stub:
    """A swarm that answers each question with the number of messages that it was told."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str]]] = []
        self.fails: list[ShoalError] = []
        self.hangs = False
        self.closed = 0
        self.waiting = trio.Event()

    def generate(self, model: str, prompt: str | None, **options: Any) -> Answer:
        self.asked.append((model, [message["content"] for message in options["messages"]]))
        return Answer("", self._stream)

    async def _stream(self, answer: Answer) -> AsyncGenerator[Delta]:
        if self.fails:
            raise self.fails.pop()
        answer.route = (
            RouteStage(PeerId("12D3a"), Span(0, 10), "direct"),
            RouteStage(PeerId("12D3b"), Span(10, 30), "direct"),
        )
        try:
            yield Delta(f"answer {len(self.asked)}", (1,), None)
            self.waiting.set()
            if self.hangs:
                await trio.sleep_forever()
        finally:
            self.closed += 1

    async def resolve(self, name: str, progress: object = None) -> Any:
        if name != SHAPE.name:
            raise UnknownModel(f"there is no model {name}", next_command="shoal models list")
        return SHAPE

    def models(self) -> list[ModelShape]:
        return [SHAPE]

    def coverage(self, digest: Digest) -> list[int]:
        return [1] * 30


class Lines:
    """A reader of lines that are known before."""

    def __init__(self, *lines: str) -> None:
        self.lines = list(lines)

    async def read(self) -> str | None:
        return self.lines.pop(0) if self.lines else None


class Shown:
    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text

    def close(self) -> None:
        self.text += "|"


async def talk(stub: Stub, *lines: str, forgiving: bool = True) -> tuple[Talk, str]:
    shown = Shown()

    @contextmanager
    def screen():
        yield shown
        shown.close()

    talking = Talk(cast("Swarm", stub), Conversation("fish"), AnswerRequest(""), forgiving, screen=screen)
    await talking.run(Lines(*lines))
    return talking, shown.text


def said(talking: Talk) -> Sequence[str]:
    return [message["content"] for message in talking.conversation.messages()]


async def test_each_question_is_asked_with_all_that_was_said(capsys: pytest.CaptureFixture[str]) -> None:
    stub = Stub()
    _, shown = await talk(stub, "why?", "how?")
    assert stub.asked == [("fish", ["why?"]), ("fish", ["why?", "answer 1", "how?"])]
    assert shown == "answer 1|answer 2|"
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Anchovy-2D3a 0:10 → Saury-2D3b 10:30" in captured.err


async def test_an_answer_that_survived_a_loss_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    class Lossy(Stub):
        async def _stream(self, answer: Answer) -> AsyncGenerator[Delta]:
            answer.reroutes = (RouteChange(0.0, 1.25, (PeerId("12D3lost"),), "resend"),)
            async for delta in super()._stream(answer):
                yield delta

    await talk(Lossy(), "why?")
    assert "went on without Garfish-lost after 1.2 s" in capsys.readouterr().err


async def test_new_forgets_and_keeps_the_system_message() -> None:
    stub = Stub()
    await talk(stub, "/system Be brief.", "why?", "/new", "how?")
    assert stub.asked[-1] == ("fish", ["Be brief.", "how?"])


async def test_the_system_message_can_be_shown_and_removed(capsys: pytest.CaptureFixture[str]) -> None:
    talking, _ = await talk(Stub(), "/system Be brief.", "/system", '/system ""', "/system")
    assert talking.conversation.system == ""
    err = capsys.readouterr().err
    assert err.count("Be brief.") == 2
    assert err.count("no system message") == 2


async def test_retry_asks_the_last_question_again() -> None:
    stub = Stub()
    talking, _ = await talk(stub, "why?", "/retry")
    assert stub.asked == [("fish", ["why?"])] * 2
    assert said(talking) == ["why?", "answer 2"]


async def test_models_are_listed_and_changed(capsys: pytest.CaptureFixture[str]) -> None:
    stub = Stub()
    talking, _ = await talk(stub, "/model", "/model fishes", "/model fish")
    err = capsys.readouterr().err
    assert "* fish  30 blocks\n" in err
    assert "there is no model fishes" in err
    assert talking.conversation.model == "fish"


async def test_the_route_of_the_last_answer(capsys: pytest.CaptureFixture[str]) -> None:
    await talk(Stub(), "/route", "why?", "/route")
    captured = capsys.readouterr()
    assert "no answer yet" in captured.err
    assert [line.split()[:2] for line in captured.out.splitlines()[1:]] == [
        ["0:10", "Anchovy-2D3a"],
        ["10:30", "Saury-2D3b"],
    ]


async def test_a_conversation_goes_on_from_a_file(tmp_path: Path) -> None:
    file = str(tmp_path / "talk.json")
    await talk(Stub(), "why?", f"/save {file}")
    stub = Stub()
    await talk(stub, f"/load {file}", "how?")
    assert stub.asked == [("fish", ["why?", "answer 1", "how?"])]


async def test_a_file_that_is_missing_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    stub = Stub()
    await talk(stub, "/load /nowhere/talk.json", "/nonsense", "why?")
    assert len(stub.asked) == 1
    err = capsys.readouterr().err
    assert "/nowhere/talk.json" in err
    assert "no command /nonsense" in err


async def test_quit_ends(capsys: pytest.CaptureFixture[str]) -> None:
    stub = Stub()
    await talk(stub, "/help", "/quit", "why?")
    assert stub.asked == []
    assert "/retry" in capsys.readouterr().err


async def test_an_error_is_shown_and_the_question_can_be_tried_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stub = Stub()
    stub.fails = [NoCoverage("nobody serves 0:10")]
    talking, _ = await talk(stub, "why?", "/retry")
    assert "nobody serves 0:10" in capsys.readouterr().err
    assert stub.asked == [("fish", ["why?"])] * 2
    assert said(talking) == ["why?", "answer 2"]


async def test_a_conversation_that_is_too_long_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    class Full(Stub):
        def generate(self, model: str, prompt: str | None, **options: Any) -> Answer:
            if self.asked:
                self.fails = [PromptTooLong("too long")]
            return super().generate(model, prompt, **options)

    await talk(Full(), "why?", "how?")
    assert "/new" in capsys.readouterr().err


async def test_a_script_gets_the_error_itself(capsys: pytest.CaptureFixture[str]) -> None:
    stub = Stub()
    stub.fails = [NoCoverage("nobody serves 0:10")]
    with pytest.raises(NoCoverage):
        await talk(stub, "why?", "how?", forgiving=False)
    assert capsys.readouterr().err == "asking fish …\n"


async def test_ctrl_c_stops_the_answer_and_not_the_conversation(capsys: pytest.CaptureFixture[str]) -> None:
    stub = Stub()
    stub.hangs = True

    async def interrupt() -> None:
        await stub.waiting.wait()
        stub.hangs = False
        os.kill(os.getpid(), signal.SIGINT)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(interrupt)
            talking, shown = await talk(stub, "why?", "how?")
    assert shown == "answer 1|answer 2|"
    assert said(talking) == ["why?", "answer 1", "how?", "answer 2"]
    assert stub.closed == 2
    assert "stopped" in capsys.readouterr().err


async def test_an_error_while_ctrl_c_is_awaited_leaves_as_itself() -> None:
    async def fail() -> None:
        raise NoCoverage("nobody")

    with pytest.raises(NoCoverage):
        await stoppable(fail)
