"""A node's life: load a span, join, announce, serve; and when asked to stop, drain, say goodbye, end."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import trio

from shoal.config import Settings
from shoal.errors import ModelError, OutOfResources, UsageError
from shoal.executor.device.device import Device, memory_budget
from shoal.executor.device.find import find_device
from shoal.executor.engine import Engine
from shoal.executor.load import load_runner
from shoal.executor.runner import Runner
from shoal.executor.thread import ComputeThread
from shoal.ledger.credits.credit_file import CreditFile
from shoal.models.adapters.adapter import Adapter
from shoal.models.checkpoint.sizes import block_bytes
from shoal.models.store.local_model import LocalModel
from shoal.models.store.store import ModelStore
from shoal.net.identity import verify
from shoal.net.network import Network
from shoal.node.adapters.read import read_adapters, shared_adapters
from shoal.node.admission import DRAIN_S, drain
from shoal.node.attestation.start import Attesting, attestation_desk, start_attesting
from shoal.node.formats import pick_format
from shoal.node.owner.machine import MachineSensors, machine_of
from shoal.node.owner.watch import OwnerWatch, Turned
from shoal.node.paying.credit_desk import CreditDesk
from shoal.node.paying.payment import PaymentDesk
from shoal.node.server import SpanServer
from shoal.node.speed import Measure, Speed, measure_speed
from shoal.sharing.peer_adapters import PeerAdapters
from shoal.sharing.peer_weights import PeerWeights
from shoal.sharing.share_pace import SharePace
from shoal.sharing.shared_model import SharedModel
from shoal.sharing.weight_server import WeightServer, answer_address, shares_weights
from shoal.swarm.announcement import Served, ServedAdapter
from shoal.swarm.member import Member
from shoal.types import Format, PeerId, Span, TeeKind
from shoal.wire.fetching import Fetch

log = logging.getLogger(__name__)

KV_SHARE = 0.25
"""Share of a node's memory kept for KV when it chooses how many blocks to take."""

StatusReport = Callable[[str], None]


def blocks_that_fit(model: LocalModel, format: Format, memory: int) -> int:
    """How many blocks of a model fit into ``memory`` bytes with room left for KV.

    Raises:
        OutOfResources: not one does.
    """
    weights = int(memory * (1 - KV_SHARE))
    largest = max(block_bytes(model, format))
    fits = weights // largest
    if fits < 1:
        raise OutOfResources(
            f"one block of {model.shape.name} takes {largest >> 20} MiB in {format}, and a node of "
            f"{memory >> 20} MiB has room for {weights >> 20} MiB of weights",
            check="free memory, or choose a smaller --format",
            next_command="shoal serve MODEL --memory SIZE",
        )
    return min(fits, model.shape.n_blocks)


def check_blocks_exist(model: LocalModel, span: Span) -> None:
    """Refuse a span that the model does not have.

    Raises:
        UsageError: it ends beyond the model's last block.
    """
    if span.end > model.shape.n_blocks:
        raise UsageError(
            f"{model.shape.name} has {model.shape.n_blocks} blocks: 0:{model.shape.n_blocks}, not {span}",
            next_command=f"shoal models show {model.shape.name}",
        )


def kv_capacity(runner: Runner, settings: Settings, memory: int) -> int:
    """Tokens of KV that a node can hold: what ``kv_tokens`` allows, or fewer if memory is short.

    Raises:
        OutOfResources: the weights alone take all the memory.
    """
    per_token = max(1, round(runner.kv_bytes))
    left = memory - runner.tensor_bytes
    tokens = min(settings.kv_tokens, left // per_token)
    if tokens < 1:
        raise OutOfResources(
            f"the span's weights take {runner.tensor_bytes >> 20} MiB of {memory >> 20} MiB, "
            "and nothing is left for KV",
            check="choose a smaller --span, or allow more --memory",
            next_command="shoal serve MODEL --span START:END --memory SIZE",
        )
    return tokens


@dataclass(eq=False)
class LoadedSpan:
    """A span in memory."""

    span: Span
    engine: Engine
    thread: ComputeThread
    speed: Speed


class Node:
    """One span being served. Made by :func:`start_node`."""

    def __init__(
        self,
        model: LocalModel,
        loaded: LoadedSpan,
        server: SpanServer,
        member: Member,
        settings: Settings,
        device: Device,
        watch: OwnerWatch,
        weights: PeerWeights,
        attests: TeeKind | None = None,
        adapters: Sequence[Adapter] = (),
        measure: Measure = measure_speed,
    ) -> None:
        self.adapters = adapters
        """What sessions may have beside the model."""
        self.attests: TeeKind | None = attests
        """The hardware that it shows to run on."""
        self.model = model
        self.loaded = loaded
        self.server = server
        self.member = member
        self.settings = settings
        self.device = device
        """Where its span is computed."""
        self.watch = watch
        """What it makes of what else its machine is used for."""
        self.weights = weights
        """Where it gets tensors that are not here."""
        self.measure = measure
        """What finds the speed of each span that it loads."""
        self._device_memory = device.memory().total
        self.fits = 0
        """Blocks that it has memory to load beside those that it serves; 0: it does not move."""
        self.going: Span | None = None
        """The span that it is loading, to serve that instead."""

    @property
    def span(self) -> Span:
        return self.loaded.span

    @property
    def format(self) -> Format:
        return self.engine.format

    @property
    def engine(self) -> Engine:
        return self.loaded.engine

    def served(self) -> Served:
        """What the node announces, as of now."""
        shape, share = self.model.shape, self.server.share
        # After each forward it rests so long, which a session that is alone here waits for, too.
        rest_ms = self.server.load.step_ms * (1 / share - 1)
        return Served(
            shape.name,
            shape.digest,
            shape.n_blocks,
            shape.hidden_size,
            shape.context,
            shape.vocab_size,
            self.span.start,
            self.span.end,
            self.engine.format,
            self.engine.tokens,
            self.server.tokens_free if self.server.admits else 0,
            self.engine.sessions,
            self.server.load.step_ms,
            wait_ms=max(self.server.load.wait_ms, rest_ms),
            speed=self.loaded.speed.blocks_s * share,
            fits=self.fits,
            next_start=self.going.start if self.going else 0,
            next_end=self.going.end if self.going else 0,
            device=self.device.title[:64],
            device_memory=self._device_memory,
            share=self.watch.share,
            token_joules=round(self.watch.energy.token_joules, 6),
            numerics=str(self.engine.numerics),
            attests=self.attests or "",
            link_bytes_s=self.server.channels.bytes_s,
            trains=self.server.trains,
            awaited=self.server.awaited,
            adapters=tuple(ServedAdapter(adapter.name, adapter.digest) for adapter in self.adapters),
            price=self.server.payments.asked(len(self.span)) if self.server.payments else None,
            coordinates=self.member.coordinates.announced(),
        )

    async def drain(self, timeout_s: float = DRAIN_S) -> bool:
        """Take no new sessions, tell the swarm, and let those there are come to their end.

        Returns:
            Whether all of them did within ``timeout_s``.
        """
        return await drain(self.server, self.member, timeout_s)


async def load_served_span(
    model: LocalModel,
    span: Span,
    format: Format,
    settings: Settings,
    device: Device,
    memory: int,
    adapters: Sequence[Adapter] = (),
    measure: Measure = measure_speed,
) -> LoadedSpan:
    """Load ``span`` into ``memory`` bytes of a device, on its own thread. Raises as :func:`start_node`."""
    thread = ComputeThread("shoal-span")
    try:
        load = partial(
            load_runner,
            model,
            span,
            format,
            kv=settings.kv,
            threads=settings.threads,
            cache=settings.paths.cache,
            parallel=settings.parallel,
            device=device.name,
            kernels=settings.kernels,
        )
        runner = await thread.run(load)
        await thread.run(partial(runner.load_adapters, adapters))
        pool = await thread.run(partial(runner.make_pool, kv_capacity(runner, settings, memory)))
        speed = await thread.run(partial(measure, runner, pool))
        engine = Engine(runner, pool, thread, format=format, kv=settings.kv)
        return LoadedSpan(span, engine, thread, speed)
    except BaseException:
        thread.close()
        raise


def _weight_server(
    network: Network,
    server: SpanServer,
    store: ModelStore,
    model: LocalModel,
    adapters: Sequence[SharedModel],
    settings: Settings,
) -> WeightServer:
    """What answers who asks for the model's weights, or adapters: with them, or that they are not shared."""
    weights = WeightServer(
        SharePace(settings.share_rate), steps_waiting=lambda: server.waiting, steps=lambda: server.load.steps
    )
    server.handlers.register(Fetch, weights.take)
    if shares_weights(settings):
        try:
            weights.share(SharedModel.open(store, model))
            answer_address(network)
        except ModelError as error:  # it is served all the same
            log.warning("the weights of %s are not shared: %s", model.name, error.message)
        for adapter in adapters:
            weights.share(adapter)
    return weights


def _credit_desk(network: Network, settings: Settings) -> CreditDesk | None:
    """What keeps credits, where the settings want that."""
    if not settings.credits:
        return None
    file = CreditFile.of(settings.paths.credits, settings.swarm)
    return CreditDesk(file, network.peer, verify, time.time)


async def _payment_desk(peer: PeerId, settings: Settings) -> PaymentDesk | None:
    """What asks for payment, where the settings name a price."""
    if not settings.price:
        return None
    from shoal.node.paying.start import payee_desk  # noqa: PLC0415  needs an extra

    return await trio.to_thread.run_sync(payee_desk, peer, settings)


def _span_server(
    network: Network,
    member: Member,
    model: LocalModel,
    span: Span,
    settings: Settings,
    loaded: LoadedSpan,
    adapters: Sequence[Adapter],
    payments: PaymentDesk | None,
) -> SpanServer:
    from shoal.ledger.delegate import countersigner  # noqa: PLC0415  of the ledger, which most do without

    return SpanServer(
        network,
        loaded.engine,
        digest=model.digest,
        span=span,
        speed=loaded.speed,
        max_sessions=settings.max_sessions,
        wire=settings.wire,
        where=member.directory.address_of,
        adapters=[adapter.digest for adapter in adapters],
        train_tokens=settings.train_tokens if settings.train else 0,
        countersign=countersigner(settings.paths.data),
        credits=_credit_desk(network, settings),
        payments=payments,
    )


@asynccontextmanager
async def start_node(
    network: Network,
    member: Member,
    model: LocalModel,
    span: Span,
    settings: Settings,
    report: StatusReport = lambda _: None,
    *,
    machine: MachineSensors | None = None,
    turned: Turned | None = None,
    attesting: Attesting | None = None,
    payments: Callable[[PeerId], PaymentDesk] | None = None,
    measure: Measure = measure_speed,
) -> AsyncGenerator[Node]:
    """Load ``span`` and serve it in a swarm whose ``member`` is running, until the block ends.

    Args:
        machine: what the node gives way to its owner by; by default the machine that this runs on.
        turned: told when it begins to, or has come back; by default that is logged.
        payments: what asks for payment, of the peer that it is; by default, where the settings name a price,
            over their chain.
        attesting: what shows which machine this is, where the settings want that; by default its hardware.
        measure: how fast its spans are; what is announced of them.

    Raises:
        UsageError: the device that the settings name is not here, or the span goes beyond the model.
        OutOfResources: it does not fit.
        BadWeights, UnsupportedModel: it cannot be loaded.
        StepFailed: a process that computes the span with us is lost.
        DigestMismatch: an adapter was made for another model.
        UnknownModel, NoCoverage: an adapter is no folder here, and no peer serves it, or gives it.
        IncompatibleLibrary, BadLedgerFile, ChainError: a price is set, and no wallet or chain is there.
        QuoteFailed: the machine's hardware is to show itself, and does not.
    """
    check_blocks_exist(model, span)
    desk = payments(network.peer) if payments is not None else await _payment_desk(network.peer, settings)
    folders = await PeerAdapters(member, settings).folders(
        settings.adapter, model.shape, lambda label, done, total: report(label)
    )
    adapters = await trio.to_thread.run_sync(read_adapters, folders, model)
    shared = await trio.to_thread.run_sync(shared_adapters, adapters) if shares_weights(settings) else ()
    attesting = attesting or await start_attesting(settings)
    member.directory.know([model.shape])
    store = ModelStore(settings.paths.models)
    weights = PeerWeights(member, settings, store)
    await weights.fetch_span(model, span, lambda label, done, total: report(label))
    report(f"loading blocks {span} of {model.shape.name}")
    device = (await trio.to_thread.run_sync(find_device, settings.device)).device
    format = pick_format(model, settings, member, device).format
    memory = memory_budget(settings, device)
    loaded = await load_served_span(model, span, format, settings, device, memory, adapters, measure)
    server = _span_server(network, member, model, span, settings, loaded, adapters, desk)
    machine = machine or await trio.to_thread.run_sync(machine_of, device, settings.parallel)
    watch = OwnerWatch(server, member, model.shape, settings.yield_to_owner, machine, turned)
    node = Node(
        model, loaded, server, member, settings, device, watch, weights, attesting.kind, adapters, measure
    )
    # A span over several processes is never moved, so there is no other runner to watch.
    watching = loaded.engine.runner.watched()
    del loaded  # a node that moves must not keep in memory what it came with
    try:
        async with watching, trio.open_nursery() as nursery:
            await nursery.start(attestation_desk(attesting, network, server).run)
            await nursery.start(server.run)
            await nursery.start(_weight_server(network, server, store, model, shared, settings).run)
            member.served = node.served
            await member.announce()
            nursery.start_soon(watch.run)
            try:
                yield node
            finally:
                if member.served is not None:
                    with trio.move_on_after(2.0, shield=True):
                        await member.leave()
                nursery.cancel_scope.cancel()
    finally:
        node.loaded.thread.close()
