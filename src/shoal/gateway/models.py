"""The models that can be answered with: served by the swarm, and with their ends on this machine.

A name that a client sends is only compared with those and never becomes a path. It becomes a download where
an administrator pulls it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import trio

from shoal.client.swarm import Swarm
from shoal.client.tuning.served import adapted, names_of
from shoal.client.vision.look import Looking
from shoal.errors import DigestMismatch, PromptTooLong, UnknownModel, UsageError
from shoal.models.checkpoint.encoder_decoders import EncoderDecoder
from shoal.models.store.catalogue import close_names, find_entry
from shoal.models.store.local_model import LocalModel
from shoal.models.text.codec import TextCodec
from shoal.progress import Progress
from shoal.types import ModelShape, Span, gaps

LOOK_AGAIN_S = 5.0
"""How long what lies on this disk is believed."""


@dataclass(frozen=True, slots=True)
class Servable:
    """A model as a client of the API meets it."""

    local: LocalModel
    codec: TextCodec | None
    generates: bool = True
    """Whether it can be asked for text; an encoder gives embeddings alone."""
    both: EncoderDecoder | None = None
    """Its sides, if it has an encoder before a decoder."""
    looking: Looking | None = None
    """What looks at images for it; ``None`` if it takes text alone."""

    @property
    def hears(self) -> bool:
        """Whether it takes sound, and no text."""
        return self.both is not None and self.both.input == "audio"

    @property
    def id(self) -> str:
        return self.local.name

    @property
    def shape(self) -> ModelShape:
        return self.local.shape


class Models:
    """Which models there are. Reading the disk happens on a thread."""

    def __init__(self, swarm: Swarm, default: str) -> None:
        self._swarm = swarm
        self._default = default
        self._local: dict[str, LocalModel] = {}
        self._looked = -LOOK_AGAIN_S
        self._looking = trio.Lock()
        self._default_model: LocalModel | None = None

    async def load(self) -> LocalModel:
        """Have the ends of the default model here, fetched if need be. Raises as ``ModelStore.resolve``."""
        self._default_model = await self._swarm.resolve(self._default)
        return self._default_model

    async def prepare(self) -> None:
        """Have what the default model's first answer needs, before somebody waits for it: the processes that
        read its tokenizer and its template, and its ends.

        Raises:
            ShoalError: as for an answer; the first one is told the same.
        """
        local = await self.load()
        codec = await self._swarm.codec(local)
        if codec is not None:
            await trio.to_thread.run_sync(lambda: codec.end_tokens)  # both processes are asked for these
        if await self._swarm.encodes_only(local) or await self._swarm.encoder_decoder(local) is not None:
            return
        finder, span = self._swarm.rings.finder, self._swarm.routed(local.shape)
        first, *_ = await finder.served_numerics(local.shape, span)
        finder.check_served(local.shape, first, span)
        await self._swarm.prepare(self._default, first.format)

    async def listed(self) -> list[LocalModel]:
        """Every model of which the swarm serves some span and whose ends are here, by name.

        Each stands there with every adapter, too, that it is served with, and with every soft prompt; where
        both have one name, with the soft prompt, as :meth:`find` finds it.
        """
        await self._look()
        served, names = self.served(), await self._swarm.soft_prompts.names()
        found: list[LocalModel] = []
        for local in served:
            softened = await self._softened(local, names)
            hidden = {soft.name for soft in softened}
            served_with = [one for one in self._adapted(local) if one.name not in hidden]
            found += [local, *served_with, *softened]
        return found

    async def _softened(self, local: LocalModel, names: Sequence[str]) -> list[LocalModel]:
        """A model with each of the gateway's soft prompts that was made for it."""
        found: list[LocalModel] = []
        for name in names:
            with suppress(DigestMismatch, PromptTooLong):
                soft = await self._swarm.soft_prompts.before(local, name)
                found += [] if soft is None else [soft]
        return found

    def _adapted(self, local: LocalModel) -> list[LocalModel]:
        """A model with each adapter that has a name of its own."""
        named = names_of(self._swarm.rings.finder, local.shape)
        return [adapted(local, name, digest) for name, digest in sorted(named.items())]

    def served(self) -> list[LocalModel]:
        """The same, as this disk was when somebody looked last."""
        member = self._swarm.member
        return [m for m in self._local.values() if member.directory.is_served(m.digest, member.now())]

    def covered(self) -> float | None:
        """Share of the default model's blocks that are served, or run here; ``None`` before it is loaded."""
        local = self._default_model
        if local is None:
            return None
        missing = sum(len(span) for span in self.missing(local))
        return 1 - missing / local.shape.n_blocks

    def missing(self, local: LocalModel) -> list[Span]:
        """The blocks of the model that this gateway needs others for, and nobody serves, as far as is known.

        Of a large swarm's models that it does not answer with of late nobody can say that here.
        """
        if not self._swarm.member.size.knows(local.digest):
            return []
        try:
            routed = self._swarm.routed(local.shape)
        except UsageError:  # of fewer blocks than the gateway keeps to itself: it cannot be answered with
            return [Span(0, local.shape.n_blocks)]
        serving = self._swarm.rings.finder.serving(local.shape)
        return gaps((a.served.span for a in serving if a.served), routed.end, routed.start)

    def served_names(self) -> list[str]:
        """What the swarm serves, whether its ends are here or not."""
        return [shape.name for shape in self._swarm.models()]

    async def pull(self, name: str, progress: Progress) -> None:
        """Have what this gateway needs of a model here. Raises as ``Swarm.resolve``."""
        await self._swarm.resolve(name, progress)
        self._looked = -LOOK_AGAIN_S

    async def find(self, name: str) -> Servable:
        """The model that a client names. Who serves it, if anyone, its sessions will say.

        Raises:
            UnknownModel: none of that name has its ends here; tells which there are.
        BadWeights: its config cannot be read any more.
        """
        await self._look()
        local = self._known(name)
        base, _, adapter = name.rpartition(":")
        if local is None and (without := self._known(base)) is not None:
            finder = self._swarm.rings.finder
            local = await self._swarm.soft_prompts.find(finder, without, adapter[:64], within_s=0)
        if local is None:
            raise await self._unknown(name)
        generates = not await self._swarm.encodes_only(local)
        both = await self._swarm.encoder_decoder(local)
        looking = self._swarm.looking if await self._swarm.looking.sees(local) else None
        return Servable(local, await self._swarm.codec(local), generates, both, looking)

    def _known(self, name: str) -> LocalModel | None:
        entry = find_entry(name)
        return self._local.get(name) or (self._local.get(entry.name) if entry else None)

    async def _unknown(self, name: str) -> UnknownModel:
        kinds = [shape.kind for shape in self._swarm.models() if shape.name == name]
        if "graph" in kinds:
            return UnknownModel(
                f"{name} is a graph, and no language model",
                check=f"ask for it by the open inference protocol: POST /v2/models/{name}/infer",
            )
        if kinds:
            return UnknownModel(
                f"{name} is served, but its ends are not on the gateway's machine",
                check=f"run this on the gateway's machine: shoal models pull {name}",
            )
        names = [model.name for model in await self.listed()]
        close = [likely for likely in close_names(name[:200], names) if likely in names]
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        return UnknownModel(
            f"no model {name[:200]!r} is served here{hint}",
            check=f"choose a model that GET /v1/models lists ({', '.join(names[:8]) or 'none now'})",
        )

    async def _look(self) -> None:
        async with self._looking:
            if trio.current_time() - self._looked < LOOK_AGAIN_S:
                return
            found = await trio.to_thread.run_sync(self._swarm.store.list)
            self._local = {local.name: local for local in found}
            self._swarm.member.directory.know(local.shape for local in found)
            await self._hear_of_served()
            self._looked = trio.current_time()

    async def _hear_of_served(self) -> None:
        """Know who serves these models in a large swarm, too, as far as it knows many models that well."""
        member = self._swarm.member
        async with trio.open_nursery() as nursery:
            for local in self.served():
                if member.size.may_join(local.digest):
                    nursery.start_soon(member.use, local.digest)
