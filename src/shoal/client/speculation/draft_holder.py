"""The draft model of one client: loaded once an answer may be faster by it, freed when unused for long."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from shoal.client.sampling import Sampler
from shoal.client.speculation.draft_model import DraftModel, draft_bytes, draft_format, load_draft
from shoal.client.speculation.model_drafter import ModelDrafter, draft_error
from shoal.config import Settings
from shoal.errors import LocalProtocolError, ShoalError, UsageError
from shoal.executor.thread import ComputeThread
from shoal.models.store.local_model import LocalModel
from shoal.models.text.codec import TextCodec
from shoal.models.text.vocabulary import vocabulary_difference
from shoal.types import Digest

UNUSED_S = 300.0
"""After so long without an answer that uses it, its memory is freed."""
TRY_AGAIN_S = 60.0
"""How long a model that could not be loaded is not tried again."""
LOOK_EVERY_S = 5.0
USUAL_BYTES_S = 8e9
"""Bytes of weights that a machine reads in a second: by this it is guessed what a token takes, until that is
measured."""

log = logging.getLogger(__name__)

Resolve = Callable[[str], Awaitable[LocalModel]]
"""Brings a model by its name, with all its weights."""


class DraftHolder:
    """``run`` must be running.

    Args:
        codec: gives a model's tokenizer, ``None`` where it has none.
        loading: held while anything is loaded: transformers loads one model at a time in a process.
    """

    def __init__(
        self,
        settings: Settings,
        resolve: Resolve,
        codec: Callable[[LocalModel], Awaitable[TextCodec | None]],
        loading: trio.Lock,
    ) -> None:
        self.name = settings.draft
        self.expected_s = 0.0
        self._settings = settings
        self._resolve = resolve
        self._codec = codec
        self._local: LocalModel | None = None
        self._unfit: dict[Digest, str] = {}  # by the model that it is to guess for: why it cannot
        self._looking = trio.Lock()
        self._loading = loading
        self._loaded: trio.Event | None = None  # set when loading, which is under way, is over
        self._error: ShoalError | None = None  # why it came to nothing
        self._failed_at = 0.0
        self._model: DraftModel | None = None
        self._users = 0
        self._used_at = 0.0
        self._nursery: trio.Nursery | None = None

    @property
    def loaded(self) -> DraftModel | None:
        """The model, while it is in memory."""
        return self._model

    async def run(self) -> None:
        """Load and free it as needed, until cancelled."""
        try:
            async with trio.open_nursery() as self._nursery:
                while True:
                    await trio.sleep(LOOK_EVERY_S)
                    if not self._users and trio.current_time() - self._used_at > UNUSED_S:
                        self._free()
        finally:
            self._nursery = None
            self._free()

    async def why_unfit(self, model: LocalModel) -> str:
        """Why it cannot guess for ``model``; empty where it can, as both have the same tokens.

        Raises:
            UnknownModel, BadWeights: there is no such draft model, or it cannot be read.
        """
        async with self._looking:
            if self._local is None:
                local = await self._resolve(self.name)
                size = await trio.to_thread.run_sync(partial(_size, local, self._settings.device))
                self._local, self.expected_s = local, size / USUAL_BYTES_S
            if model.digest not in self._unfit:
                ours, theirs = await self._codec(model), await self._codec(self._local)
                differ = partial(vocabulary_difference, model, ours, self._local, theirs)
                self._unfit[model.digest] = await trio.to_thread.run_sync(differ)
        why = self._unfit[model.digest]
        return f"{self.name} cannot guess for {model.name}: {why}" if why else ""

    async def check(self, model: LocalModel) -> None:
        """See that it can guess for ``model``. Raises UsageError, or as :meth:`why_unfit`."""
        if why := await self.why_unfit(model):
            raise UsageError(
                why,
                check="choose a draft model of the same family, whose tokenizer is the same",
                next_command="shoal models list",
            )

    def drafter(self, sampler: Sampler, *, prompt: int, tokens: int, vocab: int) -> ModelDrafter:
        """What guesses for one answer; arguments as :class:`ModelDrafter`'s. It must fit."""
        return ModelDrafter(self, sampler, prompt=prompt, tokens=tokens, vocab=vocab)

    def start_soon(self, drafter: ModelDrafter) -> None:
        """As :meth:`DraftLender.start_soon`."""
        if self._nursery is not None:
            self._nursery.start_soon(drafter.catch_up)

    async def borrow(self) -> DraftModel:
        """As :meth:`DraftLender.borrow`."""
        self._users += 1
        try:
            if self._nursery is None:
                raise LocalProtocolError("a draft model before its holder runs")
            failed = self._error is not None and trio.current_time() - self._failed_at < TRY_AGAIN_S
            if self._model is None and self._loaded is None and not failed:
                # By itself: an answer that ends meanwhile must not leave a half of it behind.
                self._loaded = trio.Event()
                self._nursery.start_soon(self._load, self._loaded)
            if self._model is None and self._loaded is not None:
                await self._loaded.wait()
            if self._model is None:
                raise self._error or LocalProtocolError("a draft model that was freed while it was borrowed")
            return self._model
        except BaseException:
            self.give_back()
            raise

    def give_back(self) -> None:
        """As :meth:`DraftLender.give_back`."""
        self._users -= 1
        self._used_at = trio.current_time()

    async def _load(self, loaded: trio.Event) -> None:
        local, thread = self._local, ComputeThread("shoal-draft")
        try:
            if local is None:
                raise LocalProtocolError("a draft model that was not looked for")
            async with self._loading:
                model = await thread.run(partial(load_draft, local, self._settings, thread))
            await model.measure()
        except Exception as error:  # noqa: BLE001  a model's own code: no reason to end the client
            thread.close()
            self._error, self._failed_at = draft_error(error), trio.current_time()
            log.warning("answers go without the draft model: %s", self._error.message)
        except BaseException:
            thread.close()
            raise
        else:
            self.expected_s, self._model, self._used_at = model.token_s, model, trio.current_time()
        finally:
            self._loaded = None
            loaded.set()

    def _free(self) -> None:
        if self._model is not None:
            self._model.close()
            self._model = None


def _size(local: LocalModel, device: str) -> int:
    return draft_bytes(local, draft_format(local, device))
