"""The built-in plans: which node is hit when. Pure functions of a seed, a route and the answers' lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from shoal.errors import UsageError
from shoal.testing.lab.plan import ANSWER, Event, Kind, NodeAction, NodeGroup, Place, Run
from shoal.types import Span

LEAST_TOKENS = 8
"""An answer shorter than this leaves no room to hit it in the middle."""
PREFILL_WITHIN_S = 0.15
"""A hit in the prefill comes at most so long after the session has opened."""
BACK_S = 60.0
"""How long a session waits where the nodes of a block are started again."""
BRIEF_S = 2.0
"""A freeze that is over before it is sure to have been noticed."""
PAUSE_S = (2.0, 6.0)
"""Seconds between two events of churn."""
RESTART_S = 10.0
"""Seconds after which a node that is started again is taken to serve."""
DRAIN_S = 10.0
"""What a node that is asked to stop is taken to need for its open sessions."""
AWAY_S: dict[NodeAction, tuple[float, float]] = {
    "kill": (0.0, 4.0),
    "stop": (0.0, 4.0),
    "freeze": (1.0, 12.0),
}
"""For how long a node of churn is away, before it begins to come back."""


@dataclass(frozen=True, slots=True)
class HopReplicas:
    """One hop of the route, as the built-in plans see it."""

    span: Span
    replicas: int
    """Nodes that serve all of it."""


@dataclass(frozen=True, slots=True)
class PromptLengths:
    """A prompt, by what came of it undisturbed."""

    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True, slots=True)
class _Case:
    name: str
    events: Callable[[Random, int], list[Event]]
    """Given the number of tokens that the answer has."""
    prefill: bool = False
    expect: str = ANSWER
    gap_s: float | None = None
    settings: dict[str, Any] = field(default_factory=dict[str, Any])


def even_nodes(kind: Kind, spans: Sequence[Span], replicas: int) -> list[NodeGroup]:
    """Every span on as many nodes. A hop of ``kill`` can be lost twice: the middle span has one node more;
    and in ``churn`` a node joins that was never there: the last span has a spare one."""
    middle = len(spans) // 2 if kind == "kill" else -1
    nodes = [NodeGroup(span=str(span), replicas=replicas + (n == middle)) for n, span in enumerate(spans)]
    return nodes + ([NodeGroup(span=str(spans[-1]), name="spare", spare=True)] if kind == "churn" else [])


def kill_runs(
    seed: int, stages: Sequence[HopReplicas], prompts: Sequence[PromptLengths], count: int
) -> list[Run]:
    """Runs in which hops are killed: each in turn while the answer and while the prompt is under way, two at
    once, the replacement too, and every node of a block, with and without one that comes back.

    Raises:
        UsageError: no answer is long enough to be disturbed.
    """
    cases = _each_hop("kill", stages)
    for number, stage in enumerate(stages):
        if stage.replicas > 2:
            cases.append(_Case(f"hop {number} and its replacement", _twice(number)))
    last = len(stages) - 1
    block = stages[last].span.start
    back = Event(do="kill", block=block, token=1, for_s=0.0)
    returned = f"every node of block {block}, and they return"
    cases.append(_Case(returned, _at_token(back), gap_s=BACK_S, settings={"resume_s": BACK_S}))
    gone = Event(do="kill", block=stages[0].span.start, token=1)
    cases.append(_Case(f"every node of block {gone.block}", _at_token(gone), expect="no_coverage"))
    return _runs(seed, cases, prompts, count)


def freeze_runs(
    seed: int, stages: Sequence[HopReplicas], prompts: Sequence[PromptLengths], count: int
) -> list[Run]:
    """Runs in which hops are frozen with their sockets open: each in turn, two at once, and one only briefly.

    Raises:
        UsageError: no answer is long enough to be disturbed, or no hop has a second node.
    """
    cases = _each_hop("freeze", stages)
    for number, stage in enumerate(stages):
        if stage.replicas > 1:
            brief = Event(do="freeze", hop=number, token=1, for_s=BRIEF_S)
            cases.append(_Case(f"hop {number} briefly", _at_token(brief)))
    if not cases:
        raise UsageError(
            "no hop has a second node to go on with", check="set replicas to 2 or more in the plan"
        )
    return _runs(seed, cases, prompts, count)


def churn_run(seed: int, places: Sequence[Place], minutes: float, sessions: int) -> Run:
    """One long run: every few seconds a node is killed, leaves, freezes or comes; no block loses its last.

    The times assume that a node is back ``RESTART_S`` after it is started; the run is ``guarded``, so that an
    event waits where that was too hopeful.
    """
    random = Random(seed)
    steady = {place.name: 0.0 for place in places if not place.spare}
    spares = [place.name for place in places if place.spare]
    events: list[Event] = []
    now = random.uniform(*PAUSE_S)
    while now < 60 * minutes:
        if spares and random.random() < 0.3:
            name = spares.pop(random.randrange(len(spares)))
            events.append(Event(do="revive", node=name, time_s=round(now, 1)))
            steady[name] = now + RESTART_S
        elif free := [p for p in places if _spared(p, places, steady, now)]:
            place = random.choice(free)
            do: NodeAction = random.choices(("kill", "stop", "freeze"), (4, 2, 3))[0]
            away = round(random.uniform(*AWAY_S[do]), 1)
            events.append(Event(do=do, node=place.name, time_s=round(now, 1), for_s=away))
            steady[place.name] = now + away + RESTART_S + (DRAIN_S if do == "stop" else 0.0)
        now += random.uniform(*PAUSE_S)
    return Run(name="churn", sessions=sessions, minutes=minutes, events=events, guarded=True)


def covered_without(place: Place, others: Sequence[Place]) -> bool:
    """Whether ``others`` serve every block of ``place``."""
    return all(any(block in other.span for other in others) for block in _blocks(place.span))


def _spared(place: Place, places: Sequence[Place], steady: dict[str, float], now: float) -> bool:
    there = [p for p in places if steady.get(p.name, now + 1) <= now]
    return place in there and covered_without(place, [p for p in there if p != place])


def _blocks(span: Span) -> range:
    return range(span.start, span.end)


def _each_hop(do: NodeAction, stages: Sequence[HopReplicas]) -> list[_Case]:
    """Each hop that has a second node, and two of them at once, in the answer and in the prefill."""
    hops = [number for number, stage in enumerate(stages) if stage.replicas > 1]
    groups = [[hop] for hop in hops] + ([[hops[0], hops[-1]]] if len(hops) > 1 else [])
    cases: list[_Case] = []
    for prefill in (False, True):
        for group in groups:
            name = " and ".join(f"hop {hop}" for hop in group) + (" in the prefill" if prefill else "")
            event = Event(do=do, hop=group, token=1)
            cases.append(_Case(name, _in_prefill(event) if prefill else _at_token(event), prefill))
    return cases


def _at_token(event: Event) -> Callable[[Random, int], list[Event]]:
    """The event somewhere in the first two thirds of the answer."""

    def make(random: Random, tokens: int) -> list[Event]:
        return [_changed(event, token=random.randint(1, max(1, 2 * tokens // 3)))]

    return make


def _in_prefill(event: Event) -> Callable[[Random, int], list[Event]]:
    def make(random: Random, tokens: int) -> list[Event]:
        return [_changed(event, token=None, prefill_s=round(random.uniform(0.0, PREFILL_WITHIN_S), 3))]

    return make


def _twice(hop: int) -> Callable[[Random, int], list[Event]]:
    """The hop, and a few tokens later the one that has taken its place."""

    def make(random: Random, tokens: int) -> list[Event]:
        first = random.randint(1, tokens // 3)
        second = random.randint(first + 1, 2 * tokens // 3)
        return [Event(do="kill", hop=hop, token=token) for token in (first, second)]

    return make


def _changed(event: Event, *, token: int | None, prefill_s: float | None = None) -> Event:
    return Event(
        do=event.do, hop=event.hop, block=event.block, token=token, prefill_s=prefill_s, for_s=event.for_s
    )


def _runs(seed: int, cases: Sequence[_Case], prompts: Sequence[PromptLengths], count: int) -> list[Run]:
    """``count`` runs that take the cases in turn, from any of them on."""
    fit = [number for number, prompt in enumerate(prompts) if prompt.answer_tokens >= LEAST_TOKENS]
    if not fit:
        raise UsageError(
            f"no answer has {LEAST_TOKENS} tokens or more: none can be disturbed in the middle",
            check="use other prompts or a larger max_tokens in a plan",
        )
    longest = max(fit, key=lambda number: prompts[number].prompt_tokens)
    random = Random(seed)
    runs: list[Run] = []
    begin = random.randrange(len(cases))
    for number in range(begin, begin + count):
        case = cases[number % len(cases)]
        prompt = longest if case.prefill else random.choice(fit)
        events = case.events(random, prompts[prompt].answer_tokens)
        runs.append(
            Run(
                name=case.name,
                prompt=prompt,
                events=events,
                expect=case.expect,
                gap_s=case.gap_s,
                settings=case.settings,
            )
        )
    return runs
