"""Opens a run of rollouts: the tokenizer is here, the prompts are read, the file of samples is its own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import trio

from shoal.client.audits.audits import Audits
from shoal.client.audits.protection import Protection
from shoal.client.receipts.pull import AnswerReceipts, check_can_sign
from shoal.client.rollouts.prompts import PromptSkipped, RolloutPrompts, read_prompts
from shoal.client.rollouts.run import RolloutOptions, Rollouts, RolloutsProgress, RolloutsTold
from shoal.client.rollouts.samples import SampleFile
from shoal.client.sampling import Sampling
from shoal.client.session import Session
from shoal.config import Settings
from shoal.errors import UsageError
from shoal.models.checkpoint.encoder_decoders import EncoderDecoder
from shoal.models.embedding.settings import no_text_of
from shoal.models.store.local_model import LocalModel
from shoal.models.text.codec import TextCodec
from shoal.swarm.announcement import Announcement
from shoal.swarm.member import Member
from shoal.types import Format


class RolloutClient(Protocol):
    """What rollouts need of a :class:`shoal.client.swarm.Swarm`."""

    member: Member
    settings: Settings
    audits: Audits

    async def resolve(self, model: str) -> LocalModel: ...
    async def encodes_only(self, local: LocalModel) -> bool: ...
    async def encoder_decoder(self, local: LocalModel) -> EncoderDecoder | None: ...
    async def codec(self, local: LocalModel, *, needed: bool = False) -> TextCodec | None: ...
    def session(
        self, model: str, *, tokens: int | None, format: Format | None, background: bool
    ) -> AbstractAsyncContextManager[Session]: ...


@dataclass(frozen=True, slots=True)
class _ModelNodes:
    """The nodes of one model, as a run sees them."""

    client: RolloutClient
    model: str
    local: LocalModel
    format: Format | None

    def open_session(self, tokens: int) -> AbstractAsyncContextManager[Session]:
        return self.client.session(self.model, tokens=tokens, format=self.format, background=True)

    def serving(self) -> list[Announcement]:
        member = self.client.member
        return list(member.directory.serving(self.local.digest, member.now()))

    async def protect(
        self, session: Session, prompt: Sequence[int], said: Sequence[int], sampling: Sampling, reused: int
    ) -> tuple[AnswerReceipts | None, Protection]:
        level = self.client.settings.protection
        return await self.client.audits.protect(session, prompt, said, sampling, level, reused)


async def make_rollouts(
    client: RolloutClient,
    model: str,
    prompts: RolloutPrompts,
    out: Path,
    options: RolloutOptions | None = None,
    *,
    format: Format | None = None,
    skipped: PromptSkipped | None = None,
    told: RolloutsTold = lambda _: None,
) -> RolloutsProgress:
    """Samples of many prompts into a file, one on each line; a run that was killed goes on from there.

    Args:
        prompts, skipped: as :func:`shoal.client.rollouts.prompts.read_prompts` has them.
        format: how every hop holds its weights, as of :meth:`shoal.client.swarm.Swarm.session`.
        told: how far it is, each time samples were written.

    Raises:
        UsageError: ``prompts``, ``out``, or a line of either cannot be used, or the model generates no text.
        ShoalError: as :meth:`shoal.client.rollouts.run.Rollouts.run`.
    """
    options = options or RolloutOptions()
    local = await client.resolve(model)
    if await client.encodes_only(local):
        raise no_text_of(local)
    if await client.encoder_decoder(local) is not None:
        raise UsageError(
            f"{local.name} has an encoder before its decoder, and samples are made of decoders alone",
            check="choose another model",
        )
    if options.receipts:
        check_can_sign(local.shape)
    codec = await client.codec(local)
    if options.stop and codec is None:
        raise UsageError(f"{local.name} has no tokenizer, so nothing stops at a string")
    read = partial(read_prompts, prompts, codec, local.shape, skipped=skipped)
    found = await trio.to_thread.run_sync(read)
    file = await trio.to_thread.run_sync(SampleFile, out)
    try:
        nodes = _ModelNodes(client, model, local, format)
        return await Rollouts(nodes, local, codec, found, file, options, told).run()
    finally:
        file.close()
