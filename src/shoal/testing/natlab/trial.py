"""Does a swarm between given networks answer, and by which ways? One question, and a ping of everybody."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import trio

from shoal import config, process_environ
from shoal.config import Settings
from shoal.errors import ShoalError
from shoal.local.processes import local_swarm, make_home, on_this_machine, split
from shoal.models.store.store import ModelStore
from shoal.progress import Progress
from shoal.tasks import one_error
from shoal.testing.checkpoints import write_checkpoint
from shoal.testing.natlab.lab import NatLab
from shoal.testing.natlab.nodes import SHOAL, NatSwarm, nat_swarm, run_json
from shoal.testing.natlab.sites import Site
from shoal.types import Span

if TYPE_CHECKING:
    from rich.console import RenderableType

PROMPT = "Machines that help each other"


@dataclass(frozen=True, slots=True)
class TrialOptions:
    """What is tried."""

    sites: Sequence[Site]
    """The last host is the client's; every other one has a node."""
    model: str | None
    """``None`` takes a small one, made for this."""
    max_tokens: int
    seed: int = 0
    folder: Path | None = None
    """Where the homes and logs of nodes and clients are to stay."""


@dataclass(frozen=True, slots=True)
class WayFound:
    """How the client reaches one host's node."""

    host: str
    network: str
    span: str
    way: str
    """Empty if it does not."""
    rtt_ms: float | None
    error: str


@dataclass(frozen=True, slots=True)
class TrialReport:
    """What came of it."""

    ways: Sequence[WayFound]
    expected: Sequence[int]
    """The tokens of one process that has the whole model."""
    answer: dict[str, Any]
    """What `shoal run` printed on the client's host; empty when it failed."""
    error: str
    seconds: float

    @property
    def same(self) -> bool:
        return self.answer.get("token_ids") == list(self.expected)

    def fields(self) -> dict[str, Any]:
        """As ``--json`` prints it."""
        return {
            "same_tokens": self.same,
            "error": self.error,
            "ways": self.ways,
            "tokens": len(self.answer.get("token_ids", ())),
            "tokens_per_s": self.answer.get("tokens_per_s"),
            "ttft_s": self.answer.get("ttft_s"),
            "route": self.answer.get("route", []),
            "seconds": round(self.seconds, 1),
        }


async def run_trial(settings: Settings, order: TrialOptions, progress: Progress) -> TrialReport:
    """Make the lab, ask in it and in one process, and look how everybody is reached.

    Raises:
        ShoalError: the lab could not be made, or a node did not come up.
    """
    began = trio.current_time()
    with one_error(), TemporaryDirectory(prefix="shoal-natlab-") as temporary:
        folder = order.folder or Path(temporary)
        progress("preparing the model", 0, 0)
        settings = await trio.to_thread.run_sync(prepared, settings, order, folder)
        blocks = ModelStore(settings.paths.models).resolve(settings.model).shape.n_blocks
        question = [
            "run",
            settings.model,
            PROMPT,
            "--temperature",
            "0",
            "--max-tokens",
            str(order.max_tokens),
        ]
        progress("asking one process", 0, 0)
        expected = await _whole_answer(settings, blocks, folder, question)
        progress("starting nodes", 0, 0)
        async with _up(settings, order, blocks, folder) as (swarm, spans, client):
            progress("asking between networks", 0, 0)
            answer, error = await _asked(swarm, client, question)
            progress("looking for the ways", 0, 0)
            ways = _found(await swarm.shoal(client, "ping"), swarm, spans, order.sites)
        return TrialReport(ways, expected, answer, error, trio.current_time() - began)


def prepared(settings: Settings, order: TrialOptions, folder: Path) -> Settings:
    """The settings of all nodes and clients. Those of this machine's swarms are none of theirs."""
    model = order.model
    if model is None:
        model = str(write_checkpoint(folder / "model", "llama", eos_token_id=None))
    return replace(config.load({"model": model, "threads": 1, "format": "fp32"}, {}), paths=settings.paths)


async def _whole_answer(settings: Settings, blocks: int, folder: Path, question: list[str]) -> list[int]:
    async with local_swarm(on_this_machine(settings, "whole"), blocks, 1) as local:
        home = folder / "whole-client"
        make_home(home, settings.paths.models, local.membership)
        environ = process_environ.child_environ(**config.to_environ(local.settings), SHOAL_HOME=str(home))
        said = await run_json([*SHOAL, *question, "--json"], environ)
        return said["token_ids"]


@asynccontextmanager
async def _up(
    settings: Settings, order: TrialOptions, blocks: int, folder: Path
) -> AsyncGenerator[tuple[NatSwarm, dict[str, Span], str]]:
    *names, client = (name for site in order.sites for name in site.hosts)
    spans = dict(zip(names, itertools.cycle(split(blocks, min(blocks, len(names)))), strict=False))
    with NatLab(order.sites, seed=order.seed) as lab:
        async with nat_swarm(lab, settings, folder, spans) as swarm:
            yield swarm, spans, client


async def _asked(swarm: NatSwarm, client: str, question: list[str]) -> tuple[dict[str, Any], str]:
    try:
        return await swarm.shoal(client, *question), ""
    except ShoalError as error:
        return {}, error.message


def _found(
    pinged: dict[str, Any], swarm: NatSwarm, spans: dict[str, Span], sites: Sequence[Site]
) -> list[WayFound]:
    heard = {one["peer"]: one for one in pinged["peers"]}
    unheard = {"way": "", "rtt_ms": None, "error": "not heard of"}
    networks = {name: site.kind for site in sites for name in site.hosts}
    found: list[WayFound] = []
    for name, span in spans.items():
        one = heard.get(swarm.peers[name], unheard)
        found.append(WayFound(name, networks[name], str(span), one["way"], one["rtt_ms"], one["error"]))
    return found


def trial_table(report: TrialReport) -> RenderableType:
    """The ways, a line for each host, and below them what became of the question."""
    from rich.console import Group  # noqa: PLC0415 - only a person needs it
    from rich.table import Table  # noqa: PLC0415

    rows = Table(box=None, pad_edge=False)
    for heading in ("host", "network", "blocks", "way", "rtt"):
        rows.add_column(heading, overflow="fold")
    for way in report.ways:
        trip = way.error if way.rtt_ms is None else f"{way.rtt_ms:.1f} ms"
        rows.add_row(way.host, way.network, way.span, way.way or "none", trip)
    if report.error:
        return Group(rows, f"no answer: {report.error}")
    same = "the tokens of one process" if report.same else "other tokens than one process"
    speed = f"{report.answer['tokens_per_s']:.1f} tok/s, the first after {report.answer['ttft_s']:.2f} s"
    return Group(rows, f"{len(report.answer['token_ids'])} tokens at {speed}: {same}")
