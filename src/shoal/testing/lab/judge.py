"""What must hold of a run, whatever was done to the nodes. Pure: what was seen in, faults out."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from shoal.errors import NoCoverage, ShoalError
from shoal.swarm.announcement import Announcement
from shoal.testing.lab.asking import TimedAnswer
from shoal.testing.lab.plan import ANSWER, Event, Run
from shoal.testing.lab.runs import RunRecord
from shoal.types import PeerId

What = Literal["tokens", "gap", "error", "untyped", "missed", "kv", "ghost", "process", "leak", "unheard"]

GHOST_SLACK_S = 5.0
"""How much longer than an expiry a dead peer may be in the list: clocks, and a message on its way."""
SPARE_FDS = 24
"""Descriptors that a node may have more than when it began: channels to peers that came later."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that does not hold."""

    run: int | None
    """Which run, from 0; ``None`` where it is nobody's in particular."""
    what: What
    message: str


def judge(
    number: int, played: RunRecord, references: Sequence[Sequence[int]], gap_s: float | None
) -> list[Fault]:
    """All that is wrong with a run.

    Args:
        references: the undisturbed answer's tokens, by prompt.
        gap_s: the longest time allowed between two tokens; the run's own counts before it.
    """
    found: list[Fault] = []
    for asked in played.asked:
        reference = references[asked.prompt]
        if not same_tokens(asked, played.run, reference):
            found.append(Fault(number, "tokens", _difference(asked, reference)))
        if played.run.expect == ANSWER:
            found += [Fault(number, what, message) for what, message in _unbroken(asked, played.run, gap_s)]
        else:
            found += [Fault(number, what, message) for what, message in _refused(asked, played)]
    # A guarded event that could not take place without taking a block from everybody was right to wait.
    if not played.run.guarded and not any(asked.error for asked in played.asked):
        for event in played.missed:
            found.append(
                Fault(number, "missed", f"the moment of an event did not come: {describe_event(event)}")
            )
    return found


def same_tokens(asked: TimedAnswer, run: Run, reference: Sequence[int]) -> bool:
    """Whether the answer is the undisturbed one; of one that had to end with an error, as far as it came."""
    tokens = asked.answer.token_ids
    return list(tokens) == list(reference[: len(tokens)] if run.expect != ANSWER else reference)


def describe_event(event: Event) -> str:
    """An event in words."""
    whom = (
        f"block {event.block}"
        if event.block is not None
        else " and ".join([*event.names, *(f"hop {hop}" for hop in event.hops)])
    )
    if event.token is not None:
        when = f"at token {event.token}"
    elif event.prefill_s is not None:
        when = f"{event.prefill_s} s into the prefill"
    else:
        when = f"at {event.time_s} s"
    return f"{event.do} {whom} {when}"


def held(figures: str) -> str:
    """What a node still holds though nobody asks anything of it; empty when it is nothing.

    Args:
        figures: what it shows to Prometheus.
    """
    values = {(sample.name, sample.labels.get("state", "")): sample.value for sample in _samples(figures)}
    kinds = {
        "sessions": ("shoal_sessions", ""),
        "steps": ("shoal_queue_steps", ""),
        "tokens of KV": ("shoal_kv_tokens", "used"),
    }
    kept = {kind: values.get(key, math.nan) for kind, key in kinds.items()}
    return " and ".join(f"{value:g} {kind}" for kind, value in kept.items() if value != 0)


def computed(figures: str) -> int:
    """The tokens that a node's process has computed so far, by what it shows to Prometheus."""
    return int(sum(sample.value for sample in _samples(figures) if sample.name == "shoal_tokens_total"))


def _samples(figures: str) -> Iterator[Sample]:
    return (sample for family in text_string_to_metric_families(figures) for sample in family.samples)


def ghosts(
    announcements: Iterable[Announcement], ended: Mapping[PeerId, float], now: float, expiry_s: float
) -> set[PeerId]:
    """Peers that are listed though their process ended more than an expiry ago. Times since the epoch."""
    listed = {PeerId(announcement.peer) for announcement in announcements}
    return {peer for peer in listed if peer in ended and now - ended[peer] > expiry_s + GHOST_SLACK_S}


def leaks(before: Mapping[str, int], after: Mapping[str, int]) -> list[str]:
    """Nodes that have many more descriptors open than when they were new and idle.

    Args:
        before, after: open descriptors by process; a process in only one of them says nothing.
    """
    return [
        f"{name} has {after[name]} descriptors open, and had {count}"
        for name, count in before.items()
        if name in after and after[name] > count + SPARE_FDS
    ]


def _difference(asked: TimedAnswer, reference: Sequence[int]) -> str:
    tokens = asked.answer.token_ids
    pairs = zip(tokens, reference, strict=False)
    place = next((i for i, (got, want) in enumerate(pairs) if got != want), min(len(tokens), len(reference)))
    got = tokens[place : place + 3] or "nothing"
    return (
        f"prompt {asked.prompt}: from token {place} on it is {got} and not "
        f"{list(reference[place : place + 3]) or 'the end'}"
    )


def _unbroken(asked: TimedAnswer, run: Run, gap_s: float | None) -> Iterable[tuple[What, str]]:
    limit = run.gap_s if run.gap_s is not None else gap_s
    if asked.error is not None:
        yield ("error" if isinstance(asked.error, ShoalError) else "untyped"), described(asked.error)
    elif limit is not None and asked.gap_s > limit:
        yield "gap", f"{asked.gap_s:.1f} s passed between two tokens, at most {limit:g} are allowed"


def _refused(asked: TimedAnswer, played: RunRecord) -> Iterable[tuple[What, str]]:
    """What is wrong with the error that the run had to end with."""
    run, error = played.run, asked.error
    if error is None:
        yield "error", f"{run.expect} was to come, and an answer came"
        return
    if not isinstance(error, ShoalError):
        yield "untyped", described(error)
    elif error.code != run.expect:
        yield "error", f"{run.expect} was to come, not {described(error)}"
    elif isinstance(error, NoCoverage) and (message := _unnamed(error, hit_blocks(run.events))):
        yield "error", message
    if (late := error_s(asked)) is not None and late > run.within_s:
        yield "error", f"the error came after {late:.1f} s, at most {run.within_s:g} are allowed"


def error_s(asked: TimedAnswer) -> float | None:
    """Seconds from the last thing done to the nodes to the error."""
    if asked.error is None or asked.ended is None or not asked.hits:
        return None
    return asked.ended - asked.hits[-1]


def hit_blocks(events: Iterable[Event]) -> set[int]:
    """The blocks that events take from everybody."""
    return {event.block for event in events if event.block is not None}


def described(error: BaseException) -> str:
    code = f"{error.code}: " if isinstance(error, ShoalError) else ""
    return f"{type(error).__name__}: {code}{error}"


def _unnamed(error: NoCoverage, blocks: Collection[int]) -> str:
    unnamed = [block for block in blocks if not any(block in span for span in error.missing)]
    unsaid = [span for span in error.missing if str(span) not in error.message]
    if unnamed or unsaid or not error.missing:
        return f"the error does not name the blocks that are gone, {sorted(blocks)}: {error.message}"
    return ""
