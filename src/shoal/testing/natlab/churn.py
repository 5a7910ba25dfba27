"""A swarm between homes of which nodes, relays and mappings come and go while it is asked."""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import msgspec
import psutil
import trio
from msgspec import Struct

from shoal import config, process_environ
from shoal.config import Settings
from shoal.errors import DeadlineExceeded, ShoalError
from shoal.local.processes import local_swarm, make_home, on_this_machine, split
from shoal.models.store.store import ModelStore
from shoal.progress import Progress
from shoal.tasks import one_error
from shoal.testing.lab.judge import GHOST_SLACK_S, held, leaks
from shoal.testing.natlab.deeds import choose_deed
from shoal.testing.natlab.lab import LabHost, NatLab
from shoal.testing.natlab.nodes import NatSwarm, nat_swarm
from shoal.testing.natlab.trial import TrialOptions, prepared
from shoal.types import PeerId, Span

if TYPE_CHECKING:
    from rich.console import RenderableType

CLIENT = [sys.executable, "-m", "shoal.testing.natlab.churn_client"]
EXPIRY_S, ANNOUNCE_S = 15.0, 4.0
DEED_EVERY_S = (3.0, 8.0)
HARMED_FOR_S = (5.0, 15.0)
IDLE_WITHIN_S = 20.0
ANSWERED_WITHIN_S = 240.0
"""Longer than a client bears to have no route (``churn_client.RESUME_S``), on a busy machine too."""
SLOW_S = 15.0
SPANS = 2
"""Into so many spans the model is cut; each has every second node."""


class ChurnAnswer(Struct):
    """What the client tells of one answer."""

    token_ids: list[int]
    gap_s: float
    error: str
    listed: list[str]
    took_s: float
    survived: list[str]
    """How each loss was overcome."""


@dataclass(slots=True)
class ChurnReport:
    """What came of it."""

    answers: int = 0
    same: int = 0
    gaps_s: list[float] = field(default_factory=list[float])
    """The longest gap between two tokens of each answer."""
    took_s: list[float] = field(default_factory=list[float])
    """How long each answer took."""
    reroutes: int = 0
    slow: list[str] = field(default_factory=list[str])
    """Answers that took longer than ``SLOW_S``, and what was done meanwhile."""
    deeds: Counter[str] = field(default_factory=Counter[str])
    faults: list[str] = field(default_factory=list[str])

    @property
    def ok(self) -> bool:
        return self.answers == self.same and self.answers > 0 and not self.faults

    def fields(self) -> dict[str, Any]:
        """As ``--json`` prints it."""
        return {
            "ok": self.ok,
            "answers": self.answers,
            "same_tokens": self.same,
            "gap_s_median": statistics.median(self.gaps_s) if self.gaps_s else None,
            "gap_s_max": max(self.gaps_s, default=None),
            "answer_s_median": statistics.median(self.took_s) if self.took_s else None,
            "answer_s_max": max(self.took_s, default=None),
            "reroutes": self.reroutes,
            "slow": self.slow,
            "deeds": self.deeds,
            "faults": self.faults,
        }


async def run_churn(
    settings: Settings, order: TrialOptions, minutes: float, progress: Progress
) -> ChurnReport:
    """Make the lab, start nodes, and ask while things are done to them.

    Raises:
        ShoalError: the lab could not be made, or a node did not come up.
    """
    with one_error(), TemporaryDirectory(prefix="shoal-natlab-") as temporary:
        folder = order.folder or Path(temporary)
        progress("preparing the model", 0, 0)
        settings = await trio.to_thread.run_sync(prepared, settings, order, folder)
        # On the kernels, whose int8 has the same bits for any cut: no process loads torch.
        settings = replace(settings, announce_s=ANNOUNCE_S, expiry_s=EXPIRY_S, format="int8", wire="float32")
        # What each process did and when: whoever looks into a slow answer needs it of all of them.
        settings = replace(settings, log_level="info", log_format="json")
        blocks = ModelStore(settings.paths.models).resolve(settings.model).shape.n_blocks
        expected = await _whole_answer(settings, blocks, folder, order.max_tokens)
        progress("starting nodes", 0, 0)
        *names, client = (name for site in order.sites for name in site.hosts)
        halves = split(blocks, SPANS)
        spans = {name: halves[number % SPANS] for number, name in enumerate(names)}
        with NatLab(order.sites, seed=order.seed) as lab:
            async with nat_swarm(lab, settings, folder, spans) as swarm:
                churn = _Churn(swarm, spans, expected, Random(order.seed))
                log = folder / f"{client}-client" / "log"
                with _asking(swarm, client, settings.model, order.max_tokens, log) as asking:
                    await churn.run(asking, minutes * 60, progress)
                return churn.report


async def _whole_answer(settings: Settings, blocks: int, folder: Path, tokens: int) -> list[int]:
    async with local_swarm(on_this_machine(settings, "whole"), blocks, 1) as local:
        home = folder / "whole-client"
        make_home(home, settings.paths.models, local.membership)
        environ = process_environ.child_environ(**config.to_environ(local.settings), SHOAL_HOME=str(home))
        argv = [*CLIENT, settings.model, str(tokens), "1"]
        # With an open stdin, at whose end the client would.
        with _process(argv, environ, home / "log") as process:
            return (await _told(process)).token_ids


@contextmanager
def _asking(
    swarm: NatSwarm, name: str, model: str, tokens: int, log: Path
) -> Generator[subprocess.Popen[bytes]]:
    _, environ = swarm.client(name)
    command = swarm.lab.host(name).command([*CLIENT, model, str(tokens), "0"])
    with _process(command, environ, log) as process:
        yield process


@contextmanager
def _process(
    command: Sequence[str], environ: dict[str, str], log: Path
) -> Generator[subprocess.Popen[bytes]]:
    pipe = subprocess.PIPE
    with (
        log.open("ab") as stderr,
        subprocess.Popen(command, env=environ, stdin=pipe, stdout=pipe, stderr=stderr) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


async def _told(process: subprocess.Popen[bytes]) -> ChurnAnswer:
    """The next answer of a client.

    Raises:
        DeadlineExceeded: there is none in time.
        ShoalError: the client has ended.
    """
    assert process.stdout is not None
    with trio.move_on_after(ANSWERED_WITHIN_S):
        line = await trio.to_thread.run_sync(process.stdout.readline, abandon_on_cancel=True)
        if not line:
            raise ShoalError("the client has ended")
        return msgspec.json.decode(line, type=ChurnAnswer)
    raise DeadlineExceeded(f"the client told of no answer within {ANSWERED_WITHIN_S:.0f} s")


class _Churn:
    """One run."""

    def __init__(self, swarm: NatSwarm, spans: dict[str, Span], expected: list[int], random: Random) -> None:
        self.report = ChurnReport()
        self._swarm = swarm
        self._spans = spans
        self._expected = expected
        self._random = random
        self._harmed: set[str] = set()
        self._began = trio.current_time()
        self._done: deque[tuple[float, str]] = deque(maxlen=32)
        """The last deeds, by when they were done."""
        self._ended: dict[PeerId, float] = {}
        """When nodes that are gone now were killed."""

    async def run(self, asking: subprocess.Popen[bytes], seconds: float, progress: Progress) -> None:
        """Ask and disturb for so long; then let all be well again, and look what is left."""
        began = trio.current_time()
        await self._judge(asking)  # undisturbed
        before = self._descriptors()
        async with trio.open_nursery() as nursery:
            disturbing = await nursery.start(self._disturb, nursery)
            while trio.current_time() - began < seconds:
                right = f"{self.report.same} of {self.report.answers} right, {len(self.report.faults)} faults"
                progress(f"asking, {right}", int(trio.current_time() - began), int(seconds))
                await self._judge(asking)
            disturbing.cancel()  # what was harmed is still mended
        await self._judge(asking)
        assert asking.stdin is not None
        asking.stdin.close()
        await self._look_for_leftovers(before)

    async def _judge(self, asking: subprocess.Popen[bytes]) -> None:
        answer = await _told(asking)
        self.report.answers += 1
        self.report.same += answer.token_ids == self._expected
        self.report.gaps_s.append(answer.gap_s)
        self.report.took_s.append(answer.took_s)
        self.report.reroutes += len(answer.survived)
        if answer.took_s > SLOW_S:
            self._note_slow(answer)
        if answer.error:
            self.report.faults.append(f"an answer ended with {answer.error}")
        elif answer.token_ids != self._expected:
            self.report.faults.append("an answer had other tokens than one process gives")
        now = time.time()
        names = {peer: name for name, peer in self._swarm.peers.items()}
        for peer in {PeerId(peer) for peer in answer.listed} & self._ended.keys():
            if now - self._ended[peer] > EXPIRY_S + GHOST_SLACK_S:
                self.report.faults.append(f"node {names[peer]} was listed long after its end")

    def _note_slow(self, answer: ChurnAnswer) -> None:
        now = trio.current_time()
        since = now - answer.took_s - SLOW_S  # what was done shortly before may show only now
        done = ", ".join(f"{at - self._began:.0f} s {what}" for at, what in self._done if at > since)
        survived = "; ".join(answer.survived) or "no loss"
        self.report.slow.append(
            f"an answer took {answer.took_s:.0f} s until {now - self._began:.0f} s, with a gap of "
            f"{answer.gap_s:.1f} s ({survived}); meanwhile: {done or 'nothing'}"
        )

    async def _disturb(
        self,
        nursery: trio.Nursery,
        *,
        task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        lab = self._swarm.lab
        routed = [name for name in self._spans if lab.has_gateway(name)]
        public = [name for name in self._spans if lab.host(name).is_public]
        with trio.CancelScope() as scope:
            task_status.started(scope)
            while True:
                await trio.sleep(self._random.uniform(*DEED_EVERY_S))
                deed = choose_deed(self._random, self._spans, routed, public, self._harmed)
                if deed is None:
                    continue
                self.report.deeds[deed.do] += 1
                self._done.append((trio.current_time(), f"{deed.do} {deed.host}"))
                if deed.do == "forget":
                    await trio.to_thread.run_sync(lab.drop_mappings, deed.host)
                    continue
                self._harmed.add(deed.host)
                harm = self._kill if deed.do == "kill" else self._offline
                nursery.start_soon(harm, deed.host, self._random.uniform(*HARMED_FOR_S))

    async def _kill(self, name: str, for_s: float) -> None:
        swarm, peer = self._swarm, self._swarm.peers[name]
        swarm.nodes[name].signal(signal.SIGKILL)
        await swarm.nodes[name].process.wait()  # else the next one finds the dead one's number, and warns
        self._ended[peer] = time.time()
        await trio.sleep(for_s)
        await swarm.start(name, self._spans[name])
        del self._ended[peer]
        await swarm.serving(name)
        self._harmed.discard(name)

    async def _offline(self, name: str, for_s: float) -> None:
        self._swarm.lab.offline(name, for_s)
        await trio.sleep(for_s + EXPIRY_S)  # until all have heard of it again
        self._harmed.discard(name)

    async def _look_for_leftovers(self, before: dict[str, int]) -> None:
        kept: dict[str, str] = {}
        with trio.move_on_after(IDLE_WITHIN_S):
            for name, process in self._swarm.nodes.items():
                if process.ended:
                    self.report.faults.append(f"node {name} ended by itself: {process.last_words()}")
                    continue
                while found := await self._held(name):
                    kept[name] = found
                    await trio.sleep(0.5)
                kept.pop(name, None)
        self.report.faults += [f"node {name} does not let go of {found}" for name, found in kept.items()]
        self.report.faults += leaks(before, self._descriptors())

    async def _held(self, name: str) -> str:
        host, url = self._swarm.lab.host(name), f"{self._swarm.figures[name]}/metrics"
        return held(await trio.to_thread.run_sync(_fetch, host, url))

    def _descriptors(self) -> dict[str, int]:
        running = {name: node.process.pid for name, node in self._swarm.nodes.items() if not node.ended}
        return {f"node {name} ({pid})": psutil.Process(pid).num_fds() for name, pid in running.items()}


def _fetch(host: LabHost, url: str) -> str:
    """What a web address on a host's loopback answers."""
    asks = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"
    return host.run([sys.executable, "-c", asks, url]).stdout


def churn_table(report: ChurnReport) -> RenderableType:
    """The counts, and each fault on a line."""
    from rich.console import Group  # noqa: PLC0415 - only a person needs it

    said = json.loads(msgspec.json.encode(report.fields()))
    deeds = ", ".join(f"{count} {deed}" for deed, count in sorted(report.deeds.items()))
    gaps = f"longest gap {said['gap_s_median']} s at the median, {said['gap_s_max']} s at most"
    return Group(
        f"{report.same} of {report.answers} answers with the tokens of one process; {gaps}",
        f"each in {said['answer_s_median']} s at the median, {said['answer_s_max']} s at most; "
        f"{report.reroutes} losses survived",
        f"done meanwhile: {deeds or 'nothing'}",
        *report.slow,
        *report.faults,
    )
