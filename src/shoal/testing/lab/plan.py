"""What is to happen: nodes, prompts, and runs with their events. Plain values, read from TOML or JSON.

Every default is written here once; ``docs/lab.md`` shows a file.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from shoal.errors import UsageError
from shoal.types import Format, Span, gaps

Seconds = Annotated[float, Meta(ge=0, le=86400)]
Index = Annotated[int, Meta(ge=0, le=1 << 14)]
LabPrompt = str | list[int]
NodeAction = Literal["kill", "stop", "freeze", "slow", "revive"]

Kind = Literal["kill", "freeze", "churn"]

MAX_NODES = 64
MAX_PLAN = 1 << 20
"""Bytes of a plan file."""
ANSWER = "answer"


class Event(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One deed, done to some nodes at some moment of the run's first answer."""

    do: NodeAction
    """``kill`` SIGKILL, ``stop`` SIGTERM, ``freeze`` SIGSTOP, ``slow`` frozen most of the time, ``revive``
    what any of these did to it, or the first start of a spare node."""
    node: str | list[str] | None = None
    """By name."""
    hop: Index | list[Index] | None = None
    """By place in the route that the answer has at that moment."""
    block: Index | None = None
    """Every node that serves this block."""
    token: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    """As soon as so many tokens have come."""
    prefill_s: Seconds | None = None
    """So many seconds after the session has opened, while the prompt is on its way."""
    time_s: Seconds | None = None
    """So many seconds after the run has begun."""
    for_s: Seconds | None = None
    """How long it lasts; then the node is revived. Without, until the run is over."""

    @property
    def names(self) -> list[str]:
        return _listed(self.node)

    @property
    def hops(self) -> list[int]:
        return _listed(self.hop)


class Run(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Answers that are asked for, and what happens meanwhile."""

    name: str = ""
    prompt: Index = 0
    """Which of the prompts the first session asks; the next session asks the next one."""
    sessions: Annotated[int, Meta(ge=1, le=256)] = 1
    """Answers at once."""
    minutes: Annotated[float, Meta(ge=0, le=1440)] = 0.0
    """How long each session asks again and again; once if 0."""
    events: list[Event] = []
    expect: str = ANSWER
    """What has to come of it: an answer, or the code of an error such as ``no_coverage``."""
    within_s: Seconds = 10.0
    """By when an expected error has to be there, after the last event."""
    gap_s: Seconds | None = None
    """The longest time allowed between two tokens; the plan's if not given."""
    settings: dict[str, Any] = {}
    """Settings of a client that is made for this run alone."""
    guarded: bool = False
    """An event that would leave a block to nobody waits until it would not."""


class NodeGroup(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Node processes that serve the same blocks."""

    span: str
    """``START:END``."""
    replicas: Annotated[int, Meta(ge=1, le=MAX_NODES)] = 1
    name: str = ""
    """A letter if not given; of several replicas each has a number after it: ``a1``, ``a2``."""
    spare: bool = False
    """Not started before an event revives it."""


class LabPlan(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All that a user may say; the built-in plans fill in what is left out."""

    model: str | None = None
    format: Format | None = None
    prompts: list[LabPrompt] = []
    """Texts, or token ids as they are."""
    max_tokens: Annotated[int, Meta(ge=1, le=1 << 20)] = 32
    nodes: list[NodeGroup] = []
    stages: Annotated[int, Meta(ge=1, le=MAX_NODES)] = 3
    """How many spans the model is cut into when no nodes are given."""
    replicas: Annotated[int, Meta(ge=1, le=MAX_NODES)] = 2
    """How many nodes serve each of them."""
    runs: list[Run] = []
    events: list[Event] = []
    """Short for one run with these events."""
    gap_s: Seconds | None = None
    """The longest time allowed between two tokens of a run."""
    gap_s_median: Seconds | None = None
    """The same over all runs: the median of the longest of each."""
    settings: dict[str, Any] = {}
    """Fields of :class:`shoal.config.Settings` for the nodes and the client."""


class LabOptions(Struct, frozen=True):
    """What a lab is asked to do."""

    kind: Kind
    plan: LabPlan
    seed: int
    runs: int
    minutes: float
    sessions: int
    liars: int = 0
    """Members beside the nodes that blame others, swallow steps, or refuse."""
    folder: Path | None = None
    """Where the nodes' homes and logs stay; they go with the lab if not given."""


class Place(Struct, frozen=True):
    """One node of the lab: a process now and then, a name always."""

    name: str
    span: Span
    spare: bool = False


def read(path: Path) -> LabPlan:
    """The plan in a file: JSON if its name ends in ``.json``, else TOML.

    Raises:
        UsageError: it cannot be read, or says what no plan can say; names the place.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PLAN + 1)
        if len(data) > MAX_PLAN:
            raise UsageError(
                f"{path} is larger than a plan of {MAX_PLAN >> 20} MiB", check="check the file's name"
            )
        text = data.decode("utf-8")
        values = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
        plan = msgspec.convert(values, LabPlan)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", check="check the name of the plan's file") from error
    except msgspec.ValidationError as error:
        raise UsageError(f"{path} is no plan: {error}", check="see docs/lab.md for every field") from error
    except (ValueError, RecursionError) as error:
        kind = "JSON" if path.suffix.lower() == ".json" else "TOML"
        raise UsageError(
            f"{path} is not {kind}: {error}", check="correct the place that the message names"
        ) from error
    for number, run in enumerate(runs_of(plan)):
        _check_run(plan, run, f"{path}, run {number}")
    return plan


def runs_of(plan: LabPlan) -> list[Run]:
    """The runs that a plan asks for itself; none if the built-in ones are to be made."""
    return [*plan.runs, *([Run(name="events", events=plan.events)] if plan.events else [])]


def places(plan: LabPlan, n_blocks: int, built_in: Sequence[NodeGroup] = ()) -> list[Place]:
    """The nodes of a plan for a model of ``n_blocks`` blocks.

    Args:
        built_in: what there is when the plan names no nodes.

    Raises:
        UsageError: a span that is none or ends beyond the model, blocks that nobody serves, a name given
            twice, an event for a node or block that is not there, or too many nodes.
    """
    found: list[Place] = []
    for number, row in enumerate(plan.nodes or built_in):
        try:
            span = Span.parse(row.span)
        except ValueError as error:
            raise UsageError(f"nodes[{number}]: {error}") from error
        if span.end > n_blocks:
            raise UsageError(f"nodes[{number}]: the model has blocks 0:{n_blocks}, not {span}")
        name = row.name or _letters(number)
        names = [f"{name}{replica}" for replica in range(1, row.replicas + 1)] if row.replicas > 1 else [name]
        found += [Place(name, span, row.spare) for name in names]
    _check_places(plan, found, n_blocks)
    return found


def _check_places(plan: LabPlan, found: Sequence[Place], n_blocks: int) -> None:
    names = [place.name for place in found]
    if len(found) > MAX_NODES:
        raise UsageError(f"{len(found)} nodes are too many for one machine", check=f"use at most {MAX_NODES}")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"two nodes are called {twice!r}", check="give each node a name of its own")
    if missing := gaps((place.span for place in found if not place.spare), n_blocks):
        raise UsageError(
            f"no node serves blocks {', '.join(map(str, missing))} of {n_blocks}",
            check="choose spans for the nodes that cover every block",
        )
    for event in (event for run in runs_of(plan) for event in run.events):
        if unknown := next((name for name in event.names if name not in names), None):
            raise UsageError(f"an event is for node {unknown!r}", check=f"choose one of: {', '.join(names)}")
        if event.block is not None and event.block >= n_blocks:
            raise UsageError(f"an event is for block {event.block}: the model has blocks 0:{n_blocks}")


def _check_run(plan: LabPlan, run: Run, where: str) -> None:
    for number, event in enumerate(run.events):
        place = f"{where}, event {number}"
        if sum(target is not None for target in (event.node, event.hop, event.block)) != 1:
            raise UsageError(f"{place}: give one of node, hop and block")
        if sum(moment is not None for moment in (event.token, event.prefill_s, event.time_s)) != 1:
            raise UsageError(f"{place}: give one of token, prefill_s and time_s")
        if event.do == "revive" and event.node is None:
            raise UsageError(f"{place}: what is to be revived is named with node: it is in no route")
        if event.token is not None and event.token >= plan.max_tokens:
            raise UsageError(
                f"{place}: at token {event.token} an answer of {plan.max_tokens} tokens is over",
                check="raise max_tokens, or choose an earlier token",
            )
    if plan.prompts and run.prompt >= len(plan.prompts):
        raise UsageError(f"{where}: there is no prompt {run.prompt}, they are 0 to {len(plan.prompts) - 1}")


def _listed(value: Any) -> Any:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _letters(number: int) -> str:
    """``a`` to ``z``, then ``aa`` and so on."""
    head, tail = divmod(number, 26)
    return (_letters(head - 1) if head else "") + chr(ord("a") + tail)
