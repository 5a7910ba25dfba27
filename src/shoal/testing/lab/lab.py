"""The lab from beginning to end: nodes up, undisturbed answers, runs with events, a report."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import assert_never

import trio

from shoal import config
from shoal.client.connect import open_swarm
from shoal.client.swarm import Swarm
from shoal.config import Settings
from shoal.errors import UsageError
from shoal.local.processes import on_this_machine, split
from shoal.models.store.store import ModelStore
from shoal.progress import Progress
from shoal.testing.lab import report as reports
from shoal.testing.lab.asking import LabRequest, TimedAnswer, ask, listen
from shoal.testing.lab.judge import Fault, What, judge
from shoal.testing.lab.liars import liars_beside
from shoal.testing.lab.nodes import LabSwarm, lab_swarm
from shoal.testing.lab.plan import Event, Kind, LabOptions, LabPlan, NodeGroup, Place, Run, places, runs_of
from shoal.testing.lab.prompts import prompts_of
from shoal.testing.lab.report import LabReport, LabResult
from shoal.testing.lab.runs import play
from shoal.testing.lab.schedule import (
    HopReplicas,
    PromptLengths,
    churn_run,
    even_nodes,
    freeze_runs,
    kill_runs,
)
from shoal.testing.lab.watch import NodeMonitor
from shoal.types import Span

READY_S = 180.0
"""The longest wait for the nodes that a run needs."""
GAP_S: dict[Kind, float] = {"kill": 6.0, "freeze": 8.0, "churn": 16.0}
"""The longest gap allowed; in churn two hops may be lost one after the other."""
GAP_S_MEDIAN: dict[Kind, float | None] = {"kill": 3.0, "freeze": None, "churn": None}


async def run_lab(settings: Settings, order: LabOptions, progress: Progress) -> LabReport:
    """Carry out an order.

    Raises:
        UsageError: a plan that does not fit the model.
        ShoalError: the model cannot be had, a node did not come up, or undisturbed answers failed.
    """
    began = trio.current_time()
    settings = prepared(settings, order.plan)
    model = await trio.to_thread.run_sync(ModelStore(settings.paths.models).resolve, settings.model)
    even = split(model.shape.n_blocks, min(order.plan.stages, model.shape.n_blocks))
    if runs_of(order.plan):
        built_in = [NodeGroup(span=str(span), replicas=order.plan.replicas) for span in even]
    else:
        built_in = even_nodes(order.kind, even, order.plan.replicas)
    rooms = places(order.plan, model.shape.n_blocks, built_in)
    prompts = prompts_of(model, order.plan)
    questions = [LabRequest(settings.model, p, order.plan.max_tokens, order.plan.format) for p in prompts]
    async with _up(settings, order, rooms, progress) as (lab, client):
        bench = _Bench(order, lab, client, questions, rooms, progress)
        await bench.take_references()
        async with liars_beside(lab, client, order.liars) as liars, trio.open_nursery() as nursery:
            bench.watch = NodeMonitor(lab, client, len(liars))
            nursery.start_soon(bench.watch.look_for_ghosts)
            await bench.play_all(_runs(order, bench))
            nursery.cancel_scope.cancel()
        return LabReport(
            order.kind,
            model.name,
            bench.format,
            order.seed,
            len(rooms),
            sum(liar.heard["Open"] for liar in liars),
            tuple(bench.results),
            tuple(bench.faults),
            trio.current_time() - began,
        )


def prepared(settings: Settings, plan: LabPlan, run: Run | None = None) -> Settings:
    """The settings of nodes and client, or those of a client for one run.

    Raises:
        UsageError: the plan sets what there is not, or to what it cannot be.
    """
    chosen = plan.settings | (run.settings if run else {})
    if unknown := sorted(set(chosen) - set(config.OPTIONS)):
        raise UsageError(
            f"settings has an unknown option {unknown[0]!r}",
            check=f"use one of: {', '.join(config.OPTIONS)}",
        )
    given = {"threads": 1} | chosen | {"metrics_host": "127.0.0.1"}
    given |= {"model": plan.model or settings.model, "format": plan.format or settings.format}
    return replace(on_this_machine(config.load(given), "lab"), paths=settings.paths)


@asynccontextmanager
async def _up(
    settings: Settings, order: LabOptions, rooms: Sequence[Place], progress: Progress
) -> AsyncGenerator[tuple[LabSwarm, Swarm]]:
    """The nodes, all serving, and a client of them."""
    with TemporaryDirectory(prefix="shoal-lab-") as temporary:
        folder = order.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        async with lab_swarm(settings, rooms, folder) as lab:
            progress(f"starting {sum(not room.spare for room in rooms)} nodes", 0, 0)
            await lab.start_all()
            async with open_swarm(lab.client_settings, lab.membership) as client:
                yield lab, client


def _runs(order: LabOptions, bench: _Bench) -> list[Run]:
    """The plan's own runs, over and over to the number asked for, or else the built-in ones."""
    if own := runs_of(order.plan):
        count = order.runs or len(own)
        chosen = [own[number % len(own)] for number in range(count)]
        bench.check(chosen)
        return chosen
    match order.kind:
        case "kill":
            return kill_runs(order.seed, bench.stages, bench.prompted, order.runs or 24)
        case "freeze":
            return freeze_runs(order.seed, bench.stages, bench.prompted, order.runs or 12)
        case "churn":
            return [churn_run(order.seed, bench.places, order.minutes, order.sessions)]
        case _:
            assert_never(order.kind)


class _Bench:
    """Nodes, a client and questions, and what was found with them."""

    def __init__(
        self,
        order: LabOptions,
        lab: LabSwarm,
        client: Swarm,
        questions: Sequence[LabRequest],
        rooms: Sequence[Place],
        progress: Progress,
    ) -> None:
        self.places = rooms
        self.faults: list[Fault] = []
        self.results: list[LabResult] = []
        self.watch = NodeMonitor(lab, client)
        self._order = order
        self._lab = lab
        self._client = client
        self._questions = questions
        self._progress = progress
        self._undisturbed: list[TimedAnswer] = []

    @property
    def format(self) -> str:
        served = [a.served.format for a in self._client.announcements() if a.served]
        return served[0] if served else ""

    @property
    def stages(self) -> list[HopReplicas]:
        """The route of an undisturbed answer."""
        spans = [stage.span for stage in self._undisturbed[0].answer.route]
        return [
            HopReplicas(span, sum(_holds(p.span, span) for p in self.places if not p.spare)) for span in spans
        ]

    @property
    def prompted(self) -> list[PromptLengths]:
        return [
            PromptLengths(len(a.answer.prompt_token_ids), len(a.answer.token_ids)) for a in self._undisturbed
        ]

    async def take_references(self) -> None:
        """Ask every question once with all nodes well: what comes is what has to come ever after.

        Raises:
            ShoalError: it did not come.
        """
        self._note(None, await self.watch.heard(), "unheard")
        for number, question in enumerate(self._questions):
            self._progress("undisturbed answers", number, len(self._questions))
            asked = ask(self._client, question, number)
            await listen(asked)
            if asked.error is not None:
                raise asked.error
            self._undisturbed.append(asked)
        self._note(None, await self.watch.idle(), "kv")

    def check(self, runs: Sequence[Run]) -> None:
        """Refuse a plan's runs that cannot take place with this model's answers.

        Raises:
            UsageError: says which.
        """
        for run in runs:
            prepared(self._lab.client_settings, self._order.plan, run)
            tokens = len(self._undisturbed[run.prompt % len(self._questions)].answer.token_ids)
            late = [e.token for e in run.events if e.token is not None and e.token >= tokens]
            if late and not run.minutes:
                raise UsageError(
                    f"run {run.name!r} has an event at token {late[0]}, and the answer to prompt "
                    f"{run.prompt} has {tokens} tokens",
                    check="choose an earlier token, or another prompt",
                )
            hops = [hop for event in run.events for hop in event.hops if hop >= len(self.stages)]
            if hops:
                raise UsageError(
                    f"run {run.name!r} has an event for hop {hops[0]}, and the route has "
                    f"{len(self.stages)} hops, from 0 on"
                )

    async def play_all(self, runs: Sequence[Run]) -> None:
        """Play the runs one after the other, and judge each."""
        references = [asked.answer.token_ids for asked in self._undisturbed]
        plan, kind = self._order.plan, self._order.kind
        gap_s = GAP_S[kind] if plan.gap_s is None else plan.gap_s
        for number, run in enumerate(runs):
            self._progress(f"run {number} ({run.name}){self._so_far()}", number, len(runs))
            await self._lab.wait_until(lambda run=run: self._ready(run), READY_S)
            self._note(number, await self.watch.heard(), "unheard")
            async with self._client_of(run) as client:
                played = await play(self._lab, client, run, self._questions)
            self.results += reports.results(number, played, references)
            self.faults += judge(number, played, references, gap_s)
            self._note(number, await self.watch.idle(), "kv")
            self.faults += self.watch.noticed(number)
        self._note(None, self.watch.leaks(), "leak")
        counted = [result.gap_s for result in self.results if result.counted]
        most = GAP_S_MEDIAN[kind] if plan.gap_s_median is None else plan.gap_s_median
        if counted and most is not None and median(counted) > most:
            message = f"the longest gap is {median(counted):.1f} s at the median, at most {most:g} is allowed"
            self.faults.append(Fault(None, "gap", message))

    def _so_far(self) -> str:
        if not self.results:
            return ""
        same = sum(result.same for result in self.results)
        gap = max((result.gap_s for result in self.results if result.counted), default=0.0)
        errors = f", {len(self.faults)} errors" if self.faults else ""
        return f", so far {same} of {len(self.results)} the same, longest gap {gap:.1f} s{errors}"

    @asynccontextmanager
    async def _client_of(self, run: Run) -> AsyncGenerator[Swarm]:
        """The client that is always there, or one with the run's settings."""
        if not run.settings:
            yield self._client
            return
        lab = self._lab
        settings = prepared(lab.client_settings, self._order.plan, run)
        settings = replace(settings, bootstrap=lab.client_settings.bootstrap)
        async with open_swarm(settings, lab.membership) as client:
            yield client

    def _ready(self, run: Run) -> bool:
        """Whether all nodes are well that serve what the run hits, and one for each other block."""
        well = [node.place for node in self._lab.nodes.values() if node.well]
        hit = [span for event in run.events for span in self._hit(event)]
        wanted = [p for p in self.places if not p.spare and any(_meet(p.span, span) for span in hit)]
        blocks = range(max(place.span.end for place in self.places))
        return set(wanted) <= set(well) and all(any(b in p.span for p in well) for b in blocks)

    def _hit(self, event: Event) -> list[Span]:
        if event.block is not None:
            return [Span(event.block, event.block + 1)]
        stages = self.stages
        named = [self._lab.nodes[name].place.span for name in event.names]
        return named + [stages[hop].span for hop in event.hops]

    def _note(self, run: int | None, messages: Sequence[str], what: What) -> None:
        self.faults += [Fault(run, what, message) for message in messages]


def _holds(outer: Span, inner: Span) -> bool:
    return outer.start <= inner.start and inner.end <= outer.end


def _meet(one: Span, other: Span) -> bool:
    return one.start < other.end and other.start < one.end
