"""A client's view of a swarm: who serves what, sessions over it, answers from it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio

from shoal.client.answer import Answer, Messages
from shoal.client.audits.auditors import OtherIdentity
from shoal.client.audits.audits import Audits
from shoal.client.audits.canaries import Canaries, CanaryParts, OtherMember
from shoal.client.audits.protect import protect_answer
from shoal.client.embeddings import (
    Embeddings,
    OpenSession,
    Texts,
    check_embeddable,
    embed_tokens,
    listed,
    text_tokens,
)
from shoal.client.generate import Delta, generate
from shoal.client.graph.graph_client import GraphClient
from shoal.client.graph.input_files import GraphInput
from shoal.client.load_ends import load_ends
from shoal.client.paying.accounts import HopAccounts
from shoal.client.recommended import answer_room, check_answer_options, sampling_for
from shoal.client.ring.opener import SessionOpener
from shoal.client.ring.rings import Rings
from shoal.client.rollouts.open import make_rollouts
from shoal.client.rollouts.prompts import RolloutPrompts
from shoal.client.rollouts.run import RolloutsProgress
from shoal.client.seq2seq.sides import EncoderInput, OpenSide, Side, encode_source, hears_only, source_rows
from shoal.client.seq2seq.sound import Sound, read_recording
from shoal.client.seq2seq.transcribe import Transcription, open_transcriber
from shoal.client.session import Session
from shoal.client.speculation.draft_holder import DraftHolder
from shoal.client.tuning.served import no_own_blocks
from shoal.client.tuning.soft_prompts import SoftPrompts
from shoal.client.vision.ask import encode_into
from shoal.client.vision.look import Looking, PictureFile
from shoal.config import Settings
from shoal.errors import BadWeights, PromptTooLong, UsageError
from shoal.executor.arrays import Array
from shoal.executor.ends import EndsEngine
from shoal.executor.thread import ComputeThread
from shoal.keyed_locks import KeyedLocks
from shoal.models.adapters.names import split_name
from shoal.models.checkpoint.checkpoint import read_encoder_decoder
from shoal.models.checkpoint.encoder_decoders import EncoderDecoder
from shoal.models.embedding.settings import EmbeddingSettings, embedding_settings, encodes_only, no_text_of
from shoal.models.graph.graph_store import GraphStore
from shoal.models.store.local_model import LocalModel
from shoal.models.store.store import ModelStore
from shoal.models.text.codec import TextCodec
from shoal.net.network import Network
from shoal.progress import Progress, silent
from shoal.routing.route import routed_span
from shoal.sharing.peer_weights import PeerWeights
from shoal.swarm.announcement import Announcement
from shoal.swarm.coverage import coverage
from shoal.swarm.member import Member
from shoal.types import Digest, Format, ModelShape, ProtectionLevel, Span
from shoal.wire.cache_names import Beginning

DEFAULT_TOKENS = 1024


class Swarm:
    """For trio callers; :func:`shoal.connect` wraps it for all others. Made by :func:`open_swarm`.

    Args:
        identity: under which peers are asked to audit others; without one, only this machine audits.
        accounts: by which hops are told who asks, and are paid.
        other: as whom canaries are sent; without one, none are.
        thread: on which the client's part is computed; by default one of its own.
    """

    def __init__(
        self,
        network: Network,
        member: Member,
        settings: Settings,
        store: ModelStore,
        identity: OtherIdentity | None = None,
        accounts: HopAccounts | None = None,
        other: OtherMember | None = None,
        thread: ComputeThread | None = None,
    ) -> None:
        self.network = network
        self.member = member
        self.settings = settings
        self.store = store
        self.weights = PeerWeights(member, settings, store)
        self.rings = Rings(network, member, settings, accounts)
        if settings.attested:
            self.rings.finder_for(attested=True)  # so that a list that is not there is told at once
        self.audits = Audits(self.rings, settings, self.weights, identity)
        self.looking = Looking(settings, self.weights)
        self.graphs = GraphClient(network, member, settings, GraphStore(settings.paths.graphs))
        self._ends: dict[tuple[Digest, Format], EndsEngine] = {}
        self._codecs: dict[Digest, TextCodec] = {}
        self._reading = KeyedLocks[Digest]()
        self._embeddings: dict[Digest, EmbeddingSettings] = {}
        self._encoders: dict[Digest, bool] = {}
        self._both: dict[Digest, EncoderDecoder | None] = {}
        self._loading = trio.Lock()
        self._thread = thread or ComputeThread("shoal-ends")
        self.soft_prompts = SoftPrompts(settings.soft_prompt, self._thread)
        self._own = settings.own_blocks
        self._opener = partial(
            SessionOpener, settings=settings, thread=self._thread, load_ends=self._load_ends
        )
        holder = partial(DraftHolder, settings, self._resolve_draft, self.codec, self._loading)
        self.draft = holder() if settings.draft else None
        """The draft model that guesses for answers, if one is set."""
        self.canaries: Canaries | None = None
        if other is not None and settings.canaries:
            parts = CanaryParts(self._opener, self.codec, self.rings, self.draft)
            self.canaries = Canaries(settings, self.audits, self.weights, parts, other, identity)

    async def move_messages(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part in the swarm until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                await self.audits.remember()
                await nursery.start(self.rings.run)
                await nursery.start(self.graphs.run)
                if self.draft is not None:
                    nursery.start_soon(self.draft.run)
                if self.canaries is not None:
                    nursery.start_soon(self.canaries.run)
                task_status.started()
        finally:
            self._codecs.clear()  # their processes end now, and not when memory is next cleaned up
            self._thread.close()

    async def run(
        self, graph: str, inputs: Mapping[str, GraphInput], *, preprocess: str = "", encrypted: bool = False
    ) -> dict[str, Array]:
        """What a graph makes of its inputs.

        The same bits as the graph uncut on one machine of the same kind, whoever computes it.

        Args:
            graph: an ``.onnx`` file, or the name or digest of a graph that is served.
            inputs: an array, lists of numbers, or the :class:`~pathlib.Path` of a file for each input: of an
                array, a picture or a sound.
            preprocess: as of :func:`shoal.client.graph.input_files.read_given`: ``"size=224x224,mean=0.5"``.
            encrypted: have no peer see inputs and outputs; small linear models alone, and not the same bits.

        Raises:
            As :meth:`GraphClient.run_named`.
        """
        return (await self.graphs.run_named(graph, inputs, preprocess, encrypted=encrypted)).outputs

    @asynccontextmanager
    async def session(
        self,
        model: str,
        *,
        tokens: int | None = None,
        format: Format | None = None,
        attested: bool | None = None,
        source: EncoderInput | None = None,
        begins: Beginning | None = None,
        background: bool = False,
        loose: bool = False,
    ) -> AsyncGenerator[Session]:
        """A session over the cheapest route; closed on the way out.

        Args:
            source: what the encoder reads or hears, of a model that has one before a decoder. The session is
                over the decoder then, and begins with what :meth:`Session.prompt_of` says.
            tokens: what every hop reserves KV for; by default 1,024 beside what an encoder gives, or the
                model's context if that is less.
            model: a name that ``shoal models show`` knows, a folder or a GGUF file.
            format: how every hop holds its weights; by default what has answered before, then what most
                peers serve; where it cannot be had, the next.
            begins: what it will begin with, if hops may have kept some of it (``Session.keep``).
            attested: over peers alone that show to run on what the measurements list; by default as set.
            background: nobody waits for what comes of it.
            loose: for pictures of which steps say what no receipt does: nothing is promised, nor audited.

        Raises:
            UsageError: peers are to show what they run on, and there is no list; ``tokens`` is less than
                1, or ``private_ends`` leave no block to others; or the model takes no such ``source``, or
                needs one.
            UnknownModel, BadWeights: the model's ends cannot be loaded here.
            PromptTooLong: the model's context is shorter.
            NoCoverage: blocks that nobody serves, now or, when a hop is lost, within ``resume_s``.
            Busy: every route that was tried is full, or this machine, of which the blocks are that it runs.
            DigestMismatch: only another version of the model is served.
        """
        local = await self.resolve(model)
        if tokens is None:
            both = None if source is None else await self.encoder_decoder(local)
            given = 0 if source is None or both is None else source_rows(both, source)
            tokens = min(DEFAULT_TOKENS + given, local.shape.context)
        if tokens < 1:
            raise UsageError(f"a session of {tokens} tokens", check="ask for at least one token")
        if tokens > local.shape.context:
            raise PromptTooLong(
                f"{tokens} tokens are more than the {local.shape.context} of {local.shape.name}",
                check="ask for fewer tokens, or shorten the prompt",
            )
        attested = self.settings.attested if attested is None else attested
        open_side = partial(
            self._opener(self.rings).over,
            local,
            format,
            attested=attested,
            begins=begins,
            background=background,
            loose=loose,
        )
        side = await self._side(local, source, open_side)
        async with open_side(side, tokens + local.virtual_tokens) as session:
            yield session

    async def _side(self, local: LocalModel, source: EncoderInput | None, open_side: OpenSide) -> Side:
        """Which blocks a session goes over; an encoder before them has taken its source by then."""
        both = await self.encoder_decoder(local)
        if both is None and source is None:
            return Side(self.routed(local.shape), given=await self.soft_prompts.given(local))
        if both is None or source is None:
            has = "has no encoder" if both is None else "has an encoder"
            raise UsageError(f"{local.name} {has} before a decoder", check="give a source to those that do")
        if self._own.spans(local.shape.n_blocks):
            raise UsageError(
                f"{local.name} has an encoder and a decoder, of which no blocks can be kept to oneself",
                check="leave private_ends out",
            )
        return await encode_source(local, both, source, open_side)

    def generate(
        self,
        model: str,
        prompt: str | Sequence[int] | None = None,
        *,
        messages: Messages | None = None,
        max_tokens: int = 256,
        stop: Sequence[str] = (),
        format: Format | None = None,
        otherwise: float = 0.0,
        speculate: bool | None = None,
        receipts: bool = False,
        protect: ProtectionLevel | None = None,
        draft: bool = True,
        attested: bool | None = None,
        images: Sequence[PictureFile] = (),
        **sampling: Any,
    ) -> Answer:
        """An answer to ``prompt`` (text or token ids as they are) or ``messages`` (by the chat template).

        A model without a tokenizer takes token ids, and its answer has no text.

        Args:
            messages: ``[{"role": "user", "content": "…"}, …]``; for a model without a chat template their
                texts are put one after another.
            sampling: the fields of :class:`shoal.client.sampling.Sampling`; greedy without a temperature.
                With a temperature, or ``temperature=None`` for the model's own, what is left out or ``None``
                is as the model's makers recommend.
            otherwise: the temperature for ``None`` where they recommend none.
            speculate: guess tokens ahead where that is faster (:mod:`shoal.client.speculation`); the tokens
                are the same either way. By default as set.
            receipts: have the hops sign the complete answer (:mod:`shoal.client.receipts.pull`).
            protect: from hops that compute something else (:mod:`shoal.client.audits`), by default as set;
                ``answer.protection`` says what came of it.
            draft: let the draft model guess too, if one is set.
            attested, images: as :meth:`session` and :func:`shoal.client.vision.ask.encode_into` have them.

        Raises:
            UsageError: at once, for an option that cannot be.
            ShoalError: while it is iterated; see :meth:`session`.
        """
        if (prompt is None) == (messages is None):
            raise UsageError("give either a prompt or messages")
        check_answer_options(max_tokens, sampling)

        async def stream(answer: Answer) -> AsyncGenerator[Delta]:
            local = await self.resolve(model)
            reads = await self._reads_first(local)
            codec = await self.codec(local, needed=messages is not None or isinstance(prompt, str))
            token_ids, seen = await encode_into(answer, self.looking, local, codec, prompt, messages, images)
            limit = min(max_tokens, answer_room(local.shape, len(token_ids)))
            chosen = sampling_for(local.sampling, sampling, otherwise)
            guessing = self.settings.speculate == "auto" if speculate is None else speculate
            drafting = await self._checked_draft(local) if guessing and draft else None
            source = token_ids if reads else None
            room, strict = len(token_ids) + limit, True if protect == "attested" else attested
            opening = partial(self.session, model, tokens=room, format=format, attested=strict, source=source)
            async with opening(loose=any(one.placed.loose for one in seen)) as session:
                answer.follow(session)
                deltas = generate(
                    session,
                    session.prompt_of(token_ids),
                    codec.detokenizer() if codec else None,
                    sampling=chosen,
                    max_tokens=limit,
                    stop=stop,
                    end_tokens=local.end_tokens,
                    timing=answer.timing,
                    speculate=guessing,
                    draft=drafting,
                    pictures=seen,
                )
                async for delta in deltas:
                    if len(answer.reroutes) < len(session.reroutes):
                        answer.follow(session)
                    yield delta
                level = protect or self.settings.protection
                await protect_answer(self.audits, answer, session, chosen, level, receipts=receipts)

        return Answer(prompt if isinstance(prompt, str) else "", stream)

    async def _checked_draft(self, local: LocalModel) -> DraftHolder | None:
        """The draft model, if one is set. Raises as ``DraftHolder.check``: it does not fit."""
        if self.draft is not None:
            await self.draft.check(local)
        return self.draft

    async def _reads_first(self, local: LocalModel) -> bool:
        """Whether an encoder reads a prompt before a decoder answers. Raises UsageError: nothing answers."""
        if await self.encodes_only(local):
            raise no_text_of(local)
        both = await self.encoder_decoder(local)
        if both is not None and both.input == "audio":
            raise hears_only(local)
        return both is not None

    async def embed(
        self,
        model: str,
        texts: Texts,
        *,
        dimensions: int | None = None,
        truncate: bool = False,
        format: Format | None = None,
        attested: bool | None = None,
    ) -> Embeddings:
        """The embedding of each text: for encoders, and for decoders that were made for it.

        Args:
            texts: a text, or its token ids as they are, or a list of either.
            dimensions: keep this many of each vector, for models that were trained for it.
            truncate: cut texts that are too long, instead of refusing them.
            format, attested: as :meth:`session` has it.

        Raises:
            UsageError: the model gives no embeddings, or ``texts`` or ``dimensions`` cannot be.
            PromptTooLong: a text is too long.
            BadWeights: the model's files do not say how its embeddings are made, or it has no tokenizer.
            ShoalError: see :meth:`session`.
        """
        local = await self.resolve(model)
        check_embeddable(local, dimensions)
        settings = await self.embedding(local)
        wanted = listed(texts)
        codec = await self.codec(local, needed=True) if isinstance(wanted[0], str) else None
        tokens = partial(text_tokens, local, codec, settings, wanted, truncate=truncate)
        ids = await trio.to_thread.run_sync(tokens)
        vectors = await embed_tokens(self.opener(model, format, attested), ids, settings, dimensions)
        return Embeddings(vectors, tuple(map(len, ids)))

    async def transcribe(
        self,
        model: str,
        recording: bytes | Sound,
        *,
        format: Format | None = None,
        attested: bool | None = None,
        **options: Any,
    ) -> Transcription:
        """What is said in a recording, for models of speech such as Whisper. 30 s are heard at a time.

        Args:
            recording: a WAV file, or the sound of one.
            format, attested: as :meth:`session` has it.
            options: ``language`` (by default the model hears which it is), ``task`` (``translate`` writes
                English), ``follow`` and ``heard`` as of a ``Transcriber``, and fields of
                :class:`shoal.client.sampling.Sampling`.

        Raises:
            UsageError: the model hears nothing, the recording cannot be read, or an option cannot be.
            BadWeights: the model's files do not say how it is asked, or it has no tokenizer.
            ShoalError: see :meth:`session`.
        """
        transcriber = await open_transcriber(self, model, format=format, attested=attested, **options)
        read = partial(read_recording, recording) if isinstance(recording, bytes) else lambda: recording
        return await transcriber.write(await trio.to_thread.run_sync(read))

    async def rollouts(
        self, model: str, prompts: RolloutPrompts, out: Path, **options: Any
    ) -> RolloutsProgress:
        """Samples of many prompts into a file, one on each line; a run that was killed goes on from there.

        Args:
            options: as of :func:`shoal.client.rollouts.open.make_rollouts`, which says what it raises.
        """
        return await make_rollouts(self, model, prompts, out, **options)

    def opener(self, model: str, format: Format | None = None, attested: bool | None = None) -> OpenSession:
        """What opens sessions with a model, for :func:`shoal.client.embeddings.embed_tokens`."""
        return lambda tokens: self.session(model, tokens=tokens, format=format, attested=attested)

    async def embedding(self, local: LocalModel) -> EmbeddingSettings:
        """How a model's embeddings are made. Raises as ``embedding_settings``."""
        if local.digest not in self._embeddings:
            self._embeddings[local.digest] = await trio.to_thread.run_sync(embedding_settings, local)
        return self._embeddings[local.digest]

    async def prepare(self, model: str, format: Format) -> None:
        """Load what an answer needs here, the tokenizer and the ends, before somebody waits for it.

        Raises:
            UnknownModel, BadWeights: the model is not here, or cannot be loaded.
        """
        local = await self.resolve(model)
        await self.codec(local)
        await self._load_ends(local, format)

    def announcements(self) -> list[Announcement]:
        """Every peer that serves something now."""
        return self.member.alive()

    def models(self) -> list[ModelShape]:
        """Every model of which some span is served."""
        return self.member.directory.models(self.member.now())

    def coverage(self, digest: Digest) -> list[int]:
        """How many peers serve each block of a model; empty when nobody serves any."""
        serving = list(self.member.directory.serving(digest, self.member.now()))
        shapes = [a.served.n_blocks for a in serving if a.served]
        return coverage([a.served.span for a in serving if a.served], shapes[0]) if shapes else []

    async def resolve(self, model: str, progress: Progress = silent) -> LocalModel:
        """The model here, as far as a client needs it, fetched if need be; as MODEL:NAME with a soft prompt
        or an adapter. Raises as :meth:`PeerWeights.resolve`, ``fetch_ends`` and :meth:`SoftPrompts.find`."""
        base, adapter = await trio.to_thread.run_sync(split_name, model)
        local = await self.weights.resolve(base, progress)
        await self.weights.fetch_ends(local, progress)
        self.member.directory.know([local.shape])
        return await self.soft_prompts.find(self.rings.finder, local, adapter) if adapter else local

    async def encodes_only(self, local: LocalModel) -> bool:
        """Whether a model gives embeddings and no text. Raises BadWeights: its config cannot be read."""
        if local.digest not in self._encoders:
            self._encoders[local.digest] = await trio.to_thread.run_sync(encodes_only, local)
        return self._encoders[local.digest]

    async def encoder_decoder(self, local: LocalModel) -> EncoderDecoder | None:
        """The sides of a model with an encoder and a decoder; ``None`` for all others. Raises as above."""
        if local.digest not in self._both:
            self._both[local.digest] = await trio.to_thread.run_sync(read_encoder_decoder, local.path)
        return self._both[local.digest]

    async def _resolve_draft(self, name: str) -> LocalModel:
        local = await self.weights.resolve(name)
        await self.weights.fetch_all(local)
        return local

    async def codec(self, local: LocalModel, *, needed: bool = False) -> TextCodec | None:
        """The model's tokenizer; ``None`` when it has none and none is needed.

        Raises:
            BadWeights: one is needed, and there is none.
        """
        async with self._reading.held(local.digest):
            if local.digest not in self._codecs:
                try:
                    self._codecs[local.digest] = await trio.to_thread.run_sync(TextCodec.load, local.path)
                except BadWeights:
                    if needed:
                        raise
                    return None
            return self._codecs[local.digest]

    def routed(self, shape: ModelShape) -> Span:
        """The blocks of a model that others are to run.

        Raises:
            UsageError: ``private_ends`` leave none, or the model has an adapter, which this machine has not.
        """
        if self._own and shape.adapter is not None:
            raise no_own_blocks()
        return routed_span(self._own, shape.n_blocks)

    async def _load_ends(self, local: LocalModel, format: Format) -> EndsEngine:
        async with self._loading:
            key = (local.digest, format)
            if key not in self._ends:
                self._ends[key] = await load_ends(local.bare, format, self.settings, self._thread)
                self.rings.ends.append(self._ends[key])
            return self._ends[key]
