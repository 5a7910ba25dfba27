"""The soft prompts of a client, by name, and what each is before the first block of its model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import trio

from shoal.client.ends import Given
from shoal.client.ring.route_finder import HEAR_WITHIN_S, RouteFinder
from shoal.client.tuning.served import with_adapter
from shoal.errors import DigestMismatch, PromptTooLong, UnknownModel, UsageError
from shoal.executor.arrays import Floats
from shoal.executor.thread import ComputeThread
from shoal.models.adapters.read import named_path
from shoal.models.adapters.soft_prompt import SoftPrompt, read_soft_prompt
from shoal.models.store.local_model import LocalModel

VIRTUAL_TOKEN = 0
"""Stands for each of its rows among a session's tokens; it is never embedded."""


class SoftPrompts:
    """Those that the settings name. Read when one is first asked for.

    Args:
        given: of each its folder, ``[NAME=]PATH``.
        thread: on which models compute.
    """

    def __init__(self, given: Sequence[str], thread: ComputeThread) -> None:
        self._given, self._thread = given, thread
        self._named: dict[str, SoftPrompt] | None = None
        self._placed: dict[tuple[str, str], Given] = {}
        self._reading = trio.Lock()
        self._placing = trio.Lock()

    async def names(self) -> list[str]:
        """How they are called. Raises as :func:`read_soft_prompt`, and UsageError: two have one name."""
        return sorted(await self._read())

    async def find(
        self, finder: RouteFinder, local: LocalModel, name: str, within_s: float = HEAR_WITHIN_S
    ) -> LocalModel:
        """The model with the soft prompt of that name, or, where none was made for it, the adapter that nodes
        serve.

        Raises:
            As :func:`with_adapter`, and as :meth:`before`: that one was made for another model is said where
            nobody serves an adapter of its name.
        """
        try:
            softened = await self.before(local, name)
        except DigestMismatch as mismatch:
            try:
                return await with_adapter(finder, local, name, within_s)
            except UnknownModel:
                raise mismatch from None
        return softened or await with_adapter(finder, local, name, within_s)

    async def before(self, local: LocalModel, name: str) -> LocalModel | None:
        """The model with the soft prompt of that name; ``None`` where there is none.

        Its context is by so many tokens shorter, and its name has that of the soft prompt behind it.

        Raises:
            DigestMismatch: it was made for another model.
            PromptTooLong: no tokens are left beside it.
            UsageError, BadWeights, UnsupportedModel: as :meth:`names`.
        """
        if not self._given or (soft := (await self._read()).get(name)) is None:
            return None
        soft.check_model(local.shape)
        context = local.shape.context - soft.tokens
        if context < 1:
            raise PromptTooLong(
                f"the soft prompt {name} takes {soft.tokens} tokens, and {local.name} "
                f"{local.shape.context} with the answer"
            )
        shape = replace(local.shape, context=context)
        return replace(local, name=f"{local.name}:{name}", shape=shape, soft_prompt=soft)

    async def given(self, local: LocalModel) -> Given | None:
        """What a session with a model begins with.

        Raises:
            BadWeights: the model's ends cannot be loaded here.
            UnsupportedModel: it takes tokens alone.
        """
        soft = local.soft_prompt
        if soft is None:
            return None
        key = (local.digest, soft.digest)
        async with self._placing:
            if key not in self._placed:
                rows = await self._thread.run(partial(_place, local, soft))
                self._placed[key] = Given(rows, VIRTUAL_TOKEN, counted=True)
            return self._placed[key]

    async def _read(self) -> dict[str, SoftPrompt]:
        async with self._reading:
            if self._named is None:
                self._named = await trio.to_thread.run_sync(self._read_all)
            return self._named

    def _read_all(self) -> dict[str, SoftPrompt]:
        found: dict[str, SoftPrompt] = {}
        for text in self._given:
            name, path = named_path(text)
            soft = read_soft_prompt(path, name)
            if soft.name in found:
                raise UsageError(
                    f"two soft prompts are called {soft.name}",
                    check="give them names: --soft-prompt NAME=PATH",
                )
            found[soft.name] = soft
        return found


def _place(local: LocalModel, soft: SoftPrompt) -> Floats:
    """The rows as the first block receives them, by the model's own modules."""
    import torch  # noqa: PLC0415  seconds, which a client without soft prompts does not wait for

    from shoal.models.build.load import load_ends_module  # noqa: PLC0415  the same

    ends = load_ends_module(local.bare)
    with torch.no_grad():
        placed = ends.place(torch.from_numpy(np.array(soft.rows)))
    return placed[0].float().cpu().contiguous().numpy()
