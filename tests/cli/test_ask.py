"""How an answer is shown: streamed, as fields, as a table of what ran where."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from shoal.cli.ask import (
    AnswerRequest,
    answer_fields,
    ask,
    route_table,
    say_speed,
    say_trace,
    speculation_line,
    user,
)
from shoal.client.answer import Answer, RouteStage
from shoal.client.ends import OwnSpan
from shoal.client.generate import Delta
from shoal.client.speculation.counts import SourceCounts, SpeculationCounts
from shoal.client.swarm import Swarm
from shoal.errors import ChannelClosed
from shoal.types import PeerId, Span
from shoal.wire.messages import HopTime


class Stub:
    """A swarm that gives one answer, in the given pieces, and remembers what it was asked."""

    def __init__(self, *texts: str, fails: bool = False) -> None:
        self.texts = texts
        self.fails = fails
        self.asked: dict[str, Any] = {}

    def generate(self, model: str, prompt: str | None, **options: Any) -> Answer:
        self.asked = {"model": model, "prompt": prompt, **options}
        return Answer(prompt or "", self._stream)

    async def _stream(self, answer: Answer) -> AsyncGenerator[Delta]:
        answer.prompt_token_ids = [5, 6]
        answer.route = tuple(RouteStage(PeerId(p), s, "direct") for p, s in zip("ab", SPANS, strict=True))
        for number, text in enumerate(self.texts):
            answer.timing.note(float(number + 1), [HopTime(0, 3000, 100), HopTime(1, 1000, 0)])
            yield Delta(text, (number,), None)
        if self.fails:
            raise ChannelClosed("the hop b is gone")


SPANS = (Span(0, 10), Span(10, 30))


async def asked(stub: Stub, question: AnswerRequest, *, stream: bool = True) -> Answer:
    return await ask(cast("Swarm", stub), question, stream=stream)


async def test_the_answer_alone_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    await asked(Stub("The ", "", "sea."), AnswerRequest("fish", user("?")))
    captured = capsys.readouterr()
    assert captured.out == "The sea.\n"
    assert captured.err == "asking fish …\n"


async def test_a_pipe_gets_exactly_what_the_model_said(capsys: pytest.CaptureFixture[str]) -> None:
    await asked(Stub("\x1b[2J"), AnswerRequest("fish", user("?")))
    assert capsys.readouterr().out == "\x1b[2J\n"


async def test_what_came_before_a_failure_stays(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ChannelClosed):
        await asked(Stub("The ", fails=True), AnswerRequest("fish", user("?")))
    assert capsys.readouterr().out == "The \n"


async def test_a_conversation_goes_through_the_template_and_a_raw_prompt_does_not() -> None:
    stub = Stub("x")
    await asked(stub, AnswerRequest("fish", user("?"), sampling={"seed": 3}), stream=False)
    assert (stub.asked["prompt"], stub.asked["messages"]) == (None, [{"role": "user", "content": "?"}])
    assert stub.asked["seed"] == 3
    await asked(stub, AnswerRequest("fish", user("?"), raw="?", images=[Path("cat.png")]), stream=False)
    assert stub.asked["images"] == [Path("cat.png")]
    assert (stub.asked["prompt"], stub.asked["messages"]) == ("?", None)


def times(**ms: float) -> dict[str, Any]:
    return {"carrier": "direct"} | ms


async def test_the_fields_of_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    question = AnswerRequest("fish", user("why?"))
    fields = answer_fields(await asked(Stub("a", "b", "c"), question, stream=False), question)
    assert capsys.readouterr().out == ""
    assert (fields["prompt"], fields["prompt_token_ids"]) == ("why?", [5, 6])
    assert (fields["text"], fields["token_ids"]) == ("abc", [0, 1, 2])
    assert fields["tokens_per_s"] == 1.0
    assert fields["reroutes"] == []
    assert fields["route"] == [
        {"peer": "a", "name": "Saury-a", "start": 0, "end": 10} | times(compute_ms=3.0, waiting_ms=0.1),
        {"peer": "b", "name": "Whiting-b", "start": 10, "end": 30} | times(compute_ms=1.0, waiting_ms=0.0),
    ]
    console = Console(width=120)
    with console.capture() as captured:
        console.print(route_table(fields))
    assert "10:30" in captured.get()
    say_speed(fields)
    assert "3 tokens at 1.0 tok/s over 2 hops" in capsys.readouterr().err


async def test_blocks_that_ran_here_are_told_with_what_they_cost(capsys: pytest.CaptureFixture[str]) -> None:
    question = AnswerRequest("fish", user("why?"))
    fields = answer_fields(await asked(Stub("a", "b"), question, stream=False), question)
    assert fields["own"] == []
    fields["own"] = [
        OwnSpan(Span(0, 2), 7_000_000, 1536, 1.25).shown(),
        OwnSpan(Span(29, 30), 3_500_000, 768, 0.5).shown(),
    ]
    say_speed(fields)
    said = capsys.readouterr().err
    assert "blocks 0:2 and 29:30 ran here: 1.8 ms a token, 10.5 MB of weights, 2.3 kB of KV" in said
    console = Console(width=120)
    with console.capture() as captured:
        console.print(route_table(fields))
    assert "this client" in captured.get() and "29:30" in captured.get()
    say_trace({"steps": [], "reroutes": [], "own": fields["own"], "speculation": fields["speculation"]})
    assert "blocks 29:30 here  compute 0.50" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        (SpeculationCounts(off="turned off"), "nothing was guessed ahead: turned off"),
        (SpeculationCounts(), "nothing was guessed ahead: it would not have been faster"),
        (
            SpeculationCounts(steps=3, guessed=20, accepted=15, gain=2.3),
            "20 tokens guessed ahead in 3 steps, 75% right: 2.3 × as fast meanwhile",
        ),
        (
            SpeculationCounts(
                steps=3,
                guessed=20,
                accepted=15,
                gain=2.3,
                sources={"draft": SourceCounts(8, 6)},
                draft="small",
            ),
            "20 tokens guessed ahead in 3 steps, 8 by small, 75% right: 2.3 × as fast meanwhile",
        ),
    ],
)
def test_a_trace_ends_with_what_was_guessed_ahead(counts: SpeculationCounts, said: str) -> None:
    assert speculation_line(counts.shown()).strip() == said
