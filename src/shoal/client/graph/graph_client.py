"""Graphs over a swarm: the client carries tensors from hop to hop, and asks another where one is lost.

Nothing is kept at a hop, so a retry is the same question to somebody else, and gives the same bits. What the
hops before have made is here: only the lost hop's segments are computed again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from shoal.client.ends import OwnSpan
from shoal.client.graph.encryptable import (
    check_encryptable,
    linear_outputs,
    no_attested_graphs,
    no_encrypted_text,
)
from shoal.client.graph.encrypted_rows import EncryptedRows, Encryption
from shoal.client.graph.graph_hop import EncryptedAnswer, GraphHop, SegmentsAnswer
from shoal.client.graph.hop_search import HopSearch, encrypting_peers
from shoal.client.graph.input_files import GraphInput, read_given
from shoal.client.graph.inputs import graph_inputs
from shoal.client.graph.known_graph import KnownGraph, digest_served, names_language_model, of_local
from shoal.client.graph.own_segments import OwnSegments, exposed_inputs, packed
from shoal.client.graph.served_manifest import fetch_graph
from shoal.client.ring.hop import RouteHop
from shoal.client.ring.route_finder import HEAR_WITHIN_S, RouteFinder
from shoal.config import Settings
from shoal.errors import (
    Busy,
    ChannelClosed,
    RemoteProtocolError,
    ShoalError,
    UnknownModel,
    UnknownSession,
    UsageError,
)
from shoal.executor.arrays import Array
from shoal.keyed_locks import KeyedLocks
from shoal.models.graph.graph_store import GraphStore, names_graph
from shoal.models.graph.manifest import graph_numerics
from shoal.net.channel import Channel
from shoal.net.network import Network
from shoal.net.pool import ChannelPool
from shoal.sharing.peer_fetcher import PeerFetcher
from shoal.swarm.announcement import numerics_of
from shoal.swarm.member import Member
from shoal.tasks import one_error
from shoal.types import CarrierName, Digest, PeerId, SessionId, Span, gaps
from shoal.wire.inferring import Inferred, InferredEncrypted
from shoal.wire.messages import Failed, Message, Opened, Refused

KEPT_GRAPHS = 64
"""Manifests that are kept in memory."""
IDLE_S = 60.0
"""A session that has asked for nothing for so long is closed."""
HEAR_OF_OURS_S = 2.0
"""How long a client waits to hear of nodes that compute as it asks, where others cover the graph."""

_Answered = TypeVar("_Answered")


@dataclass(frozen=True, slots=True)
class GraphStage:
    """A hop that a request went through, and what it took there."""

    peer: PeerId
    span: Span
    carrier: CarrierName
    compute_ms: float
    waiting_ms: float


@dataclass(slots=True)
class GraphAnswer:
    """What a graph gave."""

    outputs: dict[str, Array]
    route: list[GraphStage] = field(default_factory=list[GraphStage])
    lost: list[PeerId] = field(default_factory=list[PeerId])
    """The peers that failed on the way."""
    own: list[OwnSpan] = field(default_factory=list[OwnSpan])
    """The segments that were computed here."""
    exposed: tuple[str, ...] = ()
    """The inputs that peers were given as they are."""
    encryption: Encryption | None = None
    """How what a peer was given was encrypted; ``None``: it was not."""


class GraphClient:
    """The graphs of one client. ``run`` must be running."""

    def __init__(self, network: Network, member: Member, settings: Settings, store: GraphStore) -> None:
        self.store = store
        self.own = OwnSegments(member, settings, store)
        self._member = member
        self._settings = settings
        self._numerics = graph_numerics(fast=settings.fast)
        self._graphs: OrderedDict[str, KnownGraph] = OrderedDict()
        self._hops: dict[tuple[Digest, PeerId, Span], GraphHop] = {}
        self._sessions: dict[SessionId, GraphHop] = {}
        self._opening = KeyedLocks[tuple[Digest, PeerId, Span]]()
        self._pool = ChannelPool(
            network, self._handle, self._lost_channel, held=self._holds, where=member.directory.address_of
        )
        self._finder = RouteFinder(
            member, settings, lambda: {channel.peer: channel.rtt_s for channel in self._pool.all()}
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Move messages until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tidy)
                await self._pool.run(accept=False, task_status=task_status)
        finally:
            self.own.close()

    def asking(self) -> set[PeerId]:
        """The peers that have been asked something and have not answered."""
        return {hop.peer for hop in self._sessions.values() if hop.busy}

    async def resolve(self, name: str, *, encrypted: bool = False) -> KnownGraph:
        """A graph by its file, or by its name or digest as it was imported here or is served.

        Args:
            encrypted: whether it is to be run on encrypted inputs.

        Raises:
            UsageError: ``encrypted``, and the name is a language model's.
            UnknownModel: there is no such file, and nobody serves a graph of that name, or several do.
            BadWeights, UnsupportedModel, IncompatibleLibrary, OutOfResources: the file cannot be imported.
            BadWeights, ChannelClosed: nobody who serves it gives its manifest.
        """
        if names_graph(name):
            local = await trio.to_thread.run_sync(self.store.resolve, name, self._settings.threads or 1)
            return await self._use(of_local(local))
        if name in self._graphs:
            self._graphs.move_to_end(name)
            return self._graphs[name]
        if (found := await trio.to_thread.run_sync(self.store.find, name)) is not None:
            return await self._use(of_local(found))
        with trio.move_on_after(HEAR_WITHIN_S):  # who has just come hears of what is served in a moment
            while digest_served(name, self._member.alive()) is None:
                if encrypted and names_language_model(name, self._member.alive()):
                    raise no_encrypted_text(name)
                await self._member.wait_changed()
        return await self.find_served(name)

    async def run_named(
        self, name: str, inputs: Mapping[str, GraphInput], preprocess: str = "", *, encrypted: bool = False
    ) -> GraphAnswer:
        """What the graph of a name makes of its inputs.

        Raises:
            As :meth:`resolve`, and :meth:`infer` or, if ``encrypted``, :meth:`infer_encrypted`.
        """
        graph = await self.resolve(name, encrypted=encrypted)
        infer = self.infer_encrypted if encrypted else self.infer
        return await infer(graph, inputs, preprocess)

    async def find_served(self, name: str) -> KnownGraph:
        """A graph that is served now, by its name or digest; a name is never taken for a path.

        Raises:
            UnknownModel: nobody serves a graph of that name, or there are several.
            BadWeights, ChannelClosed: nobody who serves it gives its manifest.
        """
        digest = digest_served(name, self._member.alive())
        if digest is None:
            raise UnknownModel(
                f"no graph is known as {name[:200]!r}: nobody serves one of that name",
                check="name its .onnx file, or check shoal status for what is served",
                next_command="shoal status",
            )
        if digest in self._graphs:
            self._graphs.move_to_end(digest)
            return self._graphs[digest]
        local = await trio.to_thread.run_sync(self.store.find, digest)
        return await self._use(of_local(local) if local is not None else await self._fetch(digest))

    def covered(self, graph: KnownGraph) -> bool:
        """Whether every segment of a graph is served, as this client asks for it."""
        serving = [a.served for a in self._finder.serving(graph.shape) if a.served]
        ours = (served.span for served in serving if self._numerics.admits(numerics_of(served)))
        try:
            routed = self.own.routed(graph)
        except UsageError:  # private ends leave nothing to others, which is told to who asks
            return False
        return not gaps(ours, routed.end, routed.start)

    async def infer(
        self, graph: KnownGraph, inputs: Mapping[str, GraphInput], preprocess: str = ""
    ) -> GraphAnswer:
        """What a graph makes of its inputs, by the cheapest route.

        Args:
            preprocess: as :func:`shoal.client.graph.input_files.read_given` takes it.

        Raises:
            UsageError: the inputs are not what the graph takes, ``preprocess`` is not understood, only
                attested peers may be used, or private ends leave no segment to others.
            IncompatibleLibrary: pictures need Pillow, and private ends what computes graphs.
            BadWeights, OutOfResources: the client's own segments cannot be loaded.
            NoCoverage: segments that nobody serves, now or, where a hop is lost, within ``resume_s``.
            Busy: everybody who serves some segments is busy.
            StepFailed: the graph cannot compute this.
        """
        if self._settings.attested:
            raise no_attested_graphs()
        given = await trio.to_thread.run_sync(read_given, graph.manifest, inputs, preprocess)
        there = graph_inputs(graph.manifest, given)
        routed, count = self.own.routed(graph), len(graph.manifest.segments)
        answer = GraphAnswer({}, exposed=exposed_inputs(graph, routed))
        if routed.start:
            answer.own.append(await self.own.run(graph, Span(0, routed.start), there))
        await self._carry(graph, routed, there, answer)
        if routed.end < count:
            answer.own.append(await self.own.run(graph, Span(routed.end, count), there))
        names = {graph.manifest.values[value].name: value for value in graph.manifest.outputs}
        answer.outputs = {name: there[value].copy() for name, value in names.items()}
        return answer

    async def infer_encrypted(
        self, graph: KnownGraph, inputs: Mapping[str, GraphInput], preprocess: str = ""
    ) -> GraphAnswer:
        """What a linear graph makes of inputs that no peer sees: one computes on them as they are encrypted.

        Args:
            preprocess: as of :meth:`infer`.

        Raises:
            UsageError: as :meth:`infer`, and as :func:`check_encryptable`.
            IncompatibleLibrary: TenSEAL is not installed here.
            NoCoverage: nobody who can do that serves the graph, now or, where one is lost, within
                ``resume_s``.
            Busy, StepFailed: as :meth:`infer`; or the rows cannot be encrypted here.
        """
        linear = check_encryptable(graph, self._settings)
        given = await trio.to_thread.run_sync(read_given, graph.manifest, inputs, preprocess)
        (array,) = graph_inputs(graph.manifest, given).values()
        answer, within_s = GraphAnswer({}), self._settings.step_timeout_s
        rows = await trio.to_thread.run_sync(EncryptedRows, array, within_s)
        await self._finder.served_numerics(graph.shape, Span(0, graph.shape.n_blocks))
        await self._hear_until(lambda: bool(encrypting_peers(self._finder, graph)))
        search = self._search()
        try:
            while not answer.route:
                hop = await search.encrypting(graph)
                sizes, payload = await rows.encrypted()
                try:
                    asked, answered = await self._ask(
                        graph,
                        hop,
                        lambda opened, s=sizes, p=payload: opened.ask_encrypted(
                            s, p, linear.scores, within_s
                        ),
                    )
                    scores, answer.encryption = await rows.decrypted(answered.scores, asked.peer)
                except ShoalError as error:
                    self._note(hop, error, search, answer)
                    continue
                answer.outputs = linear_outputs(graph.manifest, linear, scores)
                answer.route.append(self._answered(asked, answered, search))
        finally:
            rows.close()
        return answer

    async def _carry(
        self, graph: KnownGraph, routed: Span, there: dict[int, Array], answer: GraphAnswer
    ) -> None:
        """Have peers compute segments ``routed`` of the values that are ``there``, and add what they give."""
        at, route = routed.start, list[RouteHop]()
        await self._hear_of(graph, routed)
        search, within_s = self._search(), self._settings.step_timeout_s
        while at < routed.end:
            if not route:
                route = await search.route(graph, Span(at, routed.end))
            hop, *route = route
            try:
                specs, payload = packed(graph, hop.span, there)
                asked, answered = await self._ask(
                    graph, hop, lambda opened, s=specs, p=payload: opened.ask(s, p, within_s)
                )
            except ShoalError as error:
                self._note(hop, error, search, answer)
                route = []
                continue
            there.update(answered.arrays)
            answer.route.append(self._answered(asked, answered, search))
            at, search = hop.span.end, self._search()

    async def _hear_of(self, graph: KnownGraph, routed: Span) -> None:
        """Wait, not long, until someone covers these segments: a client that has just come knows few."""
        await self._finder.served_numerics(graph.shape, routed)
        serving = self._finder.serving(graph.shape)
        if gaps((a.served.span for a in serving if a.served), routed.end, routed.start):
            return
        await self._hear_until(lambda: self.covered(graph))

    async def _hear_until(self, there: Callable[[], bool]) -> None:
        with trio.move_on_after(HEAR_OF_OURS_S):
            while not there():
                await self._member.wait_changed()

    def _search(self) -> HopSearch:
        return HopSearch(self._finder, self._numerics, self._settings.resume_s)

    async def _use(self, graph: KnownGraph) -> KnownGraph:
        await self._member.use(graph.digest)
        return self._know(graph)

    def _know(self, graph: KnownGraph) -> KnownGraph:
        self._member.directory.know([graph.shape])
        self._graphs[graph.digest] = graph
        self._graphs.move_to_end(graph.digest)
        if len(self._graphs) > KEPT_GRAPHS:
            self._graphs.popitem(last=False)
        return graph

    async def _ask(
        self, graph: KnownGraph, hop: RouteHop, question: Callable[[GraphHop], Awaitable[_Answered]]
    ) -> tuple[GraphHop, _Answered]:
        for attempt in range(2):
            opened = await self._session(graph, hop)
            try:
                return opened, await question(opened)
            except UnknownSession:  # its place was given to others while it was idle
                self._forget(opened)
                if attempt:
                    raise
        raise AssertionError("two attempts either return or raise")

    def _note(self, hop: RouteHop, error: ShoalError, search: HopSearch, answer: GraphAnswer) -> None:
        """Learn from a hop that gave nothing. Raises as :meth:`HopSearch.note`."""
        search.note(hop, error)
        if not isinstance(error, Busy):
            answer.lost.append(hop.address.peer)

    def _answered(
        self, asked: GraphHop, answered: SegmentsAnswer | EncryptedAnswer, search: HopSearch
    ) -> GraphStage:
        """Learn from a hop that has answered, and tell of it."""
        self._finder.reputation.answered([asked.peer])
        search.blame(asked.span)
        self._member.directory.used(asked.peer)
        compute_ms, waiting_ms = answered.compute_ms, answered.waiting_ms
        return GraphStage(asked.peer, asked.span, asked.channel.carrier, compute_ms, waiting_ms)

    async def _session(self, graph: KnownGraph, hop: RouteHop) -> GraphHop:
        """A session with a hop: the one there is, or a new one. Raises as :meth:`GraphHop.open`."""
        key = (graph.digest, hop.address.peer, hop.span)
        async with self._opening.held(key):
            found = self._hops.get(key)
            if found is not None and found.lost is None and not found.channel.closed:
                return found
            timeout_s = self._settings.open_timeout_s
            channel = await self._pool.get(hop.address, deadline_s=timeout_s)
            opened = GraphHop(channel, graph.digest, graph.manifest, hop.span, self._numerics)
            self._sessions[opened.session] = opened
            try:
                await opened.open(timeout_s)
            except BaseException:
                self._forget(opened)
                raise
            self._hops[key] = opened
            return opened

    def _forget(self, hop: GraphHop) -> None:
        self._sessions.pop(hop.session, None)
        for key in [key for key, found in self._hops.items() if found is hop]:
            del self._hops[key]
        hop.close()

    async def _fetch(self, digest: Digest) -> KnownGraph:
        """A graph from whoever serves it, over channels that end with this. Raises as :func:`fetch_graph`."""
        serving = [a for a in self._member.directory.serving(digest, self._member.now()) if a.served]
        fetcher = PeerFetcher(self._member.network, digest)
        with one_error():
            async with trio.open_nursery() as nursery:
                await nursery.start(fetcher.run)
                graph = await fetch_graph(fetcher, digest, serving, self._settings.open_timeout_s)
                nursery.cancel_scope.cancel()
        return graph

    async def _handle(self, channel: Channel, message: Message, payload: bytes) -> None:
        match message:
            case Opened() | Refused() | Inferred() | InferredEncrypted() | Failed():
                hop = self._sessions.get(SessionId(message.session))
                if hop is not None and hop.channel is channel:  # else it was closed a moment ago
                    hop.deliver(message, payload)
            case _:
                raise RemoteProtocolError(f"a {type(message).__name__} to a client of graphs")

    def _holds(self, channel: Channel) -> bool:
        return any(hop.channel is channel for hop in self._sessions.values())

    def _lost_channel(self, channel: Channel, reason: str) -> None:
        gone: Sequence[GraphHop] = [hop for hop in self._sessions.values() if hop.channel is channel]
        for hop in gone:
            hop.lose(ChannelClosed(f"{channel.peer} is gone: {reason}"))
            self._forget(hop)

    async def _tidy(self) -> None:
        while True:
            await trio.sleep(IDLE_S / 4)
            now = trio.current_time()
            for hop in list(self._hops.values()):
                if hop.lost is not None or (not hop.busy and now - hop.used > IDLE_S):
                    self._forget(hop)
