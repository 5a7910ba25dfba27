"""Ask a swarm and show the answer as it comes: what `run`, `chat` and `demo` have in common."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.cli.chat.screen import PlainScreen, Screen
from shoal.cli.output import many, say
from shoal.cli.progress import working
from shoal.swarm.names import name_of
from shoal.types import Format

if TYPE_CHECKING:
    from rich.table import Table

    from shoal.client.answer import Answer
    from shoal.client.receipts.pull import AnswerReceipts
    from shoal.client.swarm import Swarm


@dataclass(frozen=True, slots=True)
class AnswerRequest:
    """What to ask of which model, and how the answer is chosen."""

    model: str
    messages: Sequence[dict[str, str]] = ()
    """The conversation; used when there is no ``raw`` prompt."""
    raw: str | None = None
    images: Sequence[Path] = ()
    """Files that the question shows."""
    max_tokens: int = 256
    stop: Sequence[str] = ()
    format: Format | None = None
    sampling: dict[str, Any] = field(default_factory=dict[str, Any])
    """Fields of :class:`shoal.client.sampling.Sampling`; with ``None`` as the model's makers recommend."""
    receipts: bool = False
    """Whether the hops are to sign what they have done."""
    temperature: float = 0.0
    """Where neither ``sampling`` nor the model's makers name one."""

    @property
    def text(self) -> str:
        """What the user asked last."""
        return self.raw if self.raw is not None else self.messages[-1]["content"]


def user(text: str) -> list[dict[str, str]]:
    """A conversation that begins with ``text``."""
    return [{"role": "user", "content": text}]


async def ask(swarm: Swarm, question: AnswerRequest, *, stream: bool) -> Answer:
    """Put the question to the swarm; with ``stream``, its answer is written to stdout as it comes.

    Raises:
        ShoalError: as :meth:`shoal.client.swarm.Swarm.generate`. What came before stays written.
    """
    answer = put(swarm, question)
    screen = PlainScreen()
    try:
        await show(answer, question.model, screen if stream else None)
    finally:
        screen.close()
    return answer


def put(swarm: Swarm, question: AnswerRequest) -> Answer:
    """The answer to the question, to be iterated.

    Raises:
        UsageError: an option that cannot be.
    """
    return swarm.generate(
        question.model,
        question.raw,
        messages=None if question.raw is not None else question.messages,
        max_tokens=question.max_tokens,
        stop=question.stop,
        format=question.format,
        otherwise=question.temperature,
        receipts=question.receipts,
        images=question.images,
        **question.sampling,
    )


async def show(answer: Answer, model: str, screen: Screen | None) -> None:
    """Write the answer to the screen as it comes; a spinner turns until it begins. Raises as :func:`ask`."""
    with ExitStack() as waiting:
        waiting.enter_context(working(f"asking {model}"))
        async for delta in answer:
            if delta.text and screen is not None:
                waiting.close()  # a bar and an answer do not go on one line
                screen.write(delta.text)


def answer_fields(answer: Answer, question: AnswerRequest) -> dict[str, Any]:
    """An answer as ``--json`` shows it."""
    stages = zip(answer.route, answer.hop_ms(), strict=True)
    return {
        "model": question.model,
        "prompt": question.text,
        "rendered_prompt": answer.prompt,
        "prompt_token_ids": list(answer.prompt_token_ids),
        "text": answer.text,
        "token_ids": answer.token_ids,
        "finish_reason": answer.finish_reason,
        "tokens_per_s": round(answer.timing.tokens_per_s, 3),
        "ttft_s": round(answer.timing.ttft_s, 4),
        "route": [
            {
                "peer": stage.peer,
                "name": name_of(stage.peer),
                "start": stage.span.start,
                "end": stage.span.end,
                "carrier": stage.carrier,
                "compute_ms": round(compute_ms, 3),
                "waiting_ms": round(waiting_ms, 3),
                **({"attested": stage.attested} if stage.attested else {}),
            }
            for stage, (compute_ms, waiting_ms) in stages
        ],
        "own": [own.shown() for own in answer.own],
        "tower_bytes": answer.tower_bytes,
        "reroutes": list(answer.reroutes),
        "speculation": answer.timing.speculation.shown(),
        "protection": answer.protection.shown() | {"said": answer.protection.said},
    }


def keep_receipts(receipts: AnswerReceipts, file: Path) -> None:
    """Write an answer's receipts to a file, and say on stderr what they show.

    Raises:
        OSError: the file cannot be written.
    """
    file.write_bytes(receipts.kept.encoded())
    for fault in receipts.faults:
        say(f"receipts: {fault.what}")
    signed = sum(bool(hop.receipts) for hop in receipts.kept.hops)
    say(f"{signed} of {many(len(receipts.kept.hops), 'hop')} have signed the answer: shoal verify {file}")


def say_trace(trace: dict[str, Any] | None) -> None:
    """The steps of an answer on stderr, hop by hop, and the losses that it survived."""
    from shoal.cli.status.trace import reroute_line, step_lines

    if trace is not None:
        for line in (*step_lines(trace["steps"]), *map(reroute_line, trace["reroutes"])):
            say(line)
        for own in trace["own"]:
            say(f"  blocks {own['start']}:{own['end']} here  compute {own['compute_ms']:.2f}")
        say(speculation_line(trace["speculation"]))
        if trace["speculation"]["draft_off"]:
            say(f"  no guesses by {trace['speculation']['draft']}: {trace['speculation']['draft_off']}")


def speculation_line(counts: dict[str, Any]) -> str:
    """What was guessed ahead, and what it brought."""
    if counts["off"]:
        return f"  nothing was guessed ahead: {counts['off']}"
    if not counts["guessed"]:
        return "  nothing was guessed ahead: it would not have been faster"
    share = counts["accepted"] / counts["guessed"]
    draft = counts["sources"].get("draft", {"guessed": 0})["guessed"]
    by_draft = f"{draft} by {counts['draft']}, " if draft else ""
    return (
        f"  {many(counts['guessed'], 'token')} guessed ahead in {many(counts['steps'], 'step')}, {by_draft}"
        f"{share:.0%} right: {counts['gain']:.1f} × as fast meanwhile"
    )


def say_speed(fields: dict[str, Any]) -> None:
    """One line on stderr about how it went."""
    tokens, hops = many(len(fields["token_ids"]), "token"), many(len(fields["route"]), "hop")
    speed = f"{tokens} at {fields['tokens_per_s']:.1f} tok/s over {hops}"
    say(f"{speed}, the first after {fields['ttft_s']:.2f} s")
    if fields["own"]:
        say(own_line(fields["own"]))
    if fields["tower_bytes"]:
        say(f"the images were looked at here: {fields['tower_bytes'] / 1e6:.1f} MB of weights")


def say_protection(fields: dict[str, Any]) -> None:
    """What came of the answer's protection, on stderr."""
    for line in fields["said"]:
        say(line)


def own_line(own: Sequence[dict[str, Any]]) -> str:
    """What this machine computed beside the embedding and the head, and what that took."""
    spans = " and ".join(f"{part['start']}:{part['end']}" for part in own)
    weights = sum(part["weight_bytes"] for part in own) / 1e6
    kv = sum(part["kv_bytes_per_token"] for part in own) / 1e3
    took = sum(part["compute_ms"] for part in own)
    return (
        f"blocks {spans} ran here: {took:.1f} ms a token, {weights:.1f} MB of weights, "
        f"{kv:.1f} kB of KV for each token"
    )


def say_way(answer: Answer) -> None:
    """One line on stderr about who gave the answer, and how fast."""
    stages = " → ".join(f"{name_of(stage.peer)} {stage.span}" for stage in answer.route)
    speed = f"{many(len(answer.token_ids), 'token')} at {answer.timing.tokens_per_s:.1f} tok/s"
    say(f"{speed} by {stages}" if stages else speed, dim=True)
    if answer.own:
        say(own_line([own.shown() for own in answer.own]), dim=True)
    for line in answer.protection.said:
        say(line, dim=True)
    for reroute in answer.reroutes:
        lost = ", ".join(name_of(peer) for peer in reroute.lost)
        say(f"went on without {lost} after {reroute.gap_s:.1f} s", dim=True)


def route_table(fields: dict[str, Any]) -> Table:
    """Which blocks ran on which peer, and how long a decode step took there."""
    from rich.table import Table
    from rich.text import Text

    rows = Table(box=None, pad_edge=False)
    for heading in ("blocks", "peer", "carrier"):
        rows.add_column(heading, overflow="fold")
    for heading in ("compute", "waiting"):
        rows.add_column(heading, justify="right")
    for stage in fields["route"]:
        rows.add_row(
            f"{stage['start']}:{stage['end']}",
            Text(stage["name"]),
            stage["carrier"],
            f"{stage['compute_ms']:.2f} ms",
            f"{stage['waiting_ms']:.2f} ms",
        )
    for own in fields["own"]:
        rows.add_row(f"{own['start']}:{own['end']}", "this client", "", f"{own['compute_ms']:.2f} ms", "")
    return rows
