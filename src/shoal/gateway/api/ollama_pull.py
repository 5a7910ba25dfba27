"""``POST /api/pull``: a model fetched for this gateway, as lines of progress in Ollama's words."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import trio
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from shoal.errors import ShoalError, UnknownModel
from shoal.gateway.error_forms import error_response, ollama_error
from shoal.gateway.sse import LINES, EventStream, line, until_gone
from shoal.models.store.catalogue import find_entry
from shoal.models.store.sources.folder import local_path
from shoal.models.store.sources.hub import FILE, REPOSITORY
from shoal.progress import Progress
from shoal.types import DIGEST

LINE_EVERY_S = 0.25
HUB_HOSTS = ("hf.co/", "huggingface.co/")
"""How Ollama's users write a model of the hub."""
SUCCESS = {"status": "success"}

FetchModel = Callable[[Progress], Awaitable[Any]]
log = logging.getLogger(__name__)


def name_to_pull(name: str, served: list[str]) -> str:
    """What to fetch for a name that a client sends: of the catalogue, the swarm or the hub, never a path.

    Peers choose the names of what they serve, so those may not be paths either.

    Raises:
        UnknownModel: it is none of these.
    """
    for host in HUB_HOSTS:
        name = name.removeprefix(host)
    if find_entry(name) is not None or DIGEST.fullmatch(name):
        return name
    likely = name in served or REPOSITORY.fullmatch(name) or FILE.fullmatch(name)
    if likely and local_path(name) is None:
        return name
    raise UnknownModel(
        f"no model {name[:200]!r} can be pulled",
        check="name one of the catalogue, one that the swarm serves, its sha256: digest, owner/name of the "
        "Hugging Face hub, or owner/name/file.gguf; a tag such as :q4 is not known here",
    )


@dataclass
class _Progress:
    """How far a pull is; told from any thread."""

    label: str = "pulling manifest"
    done: int = 0
    total: int = 0

    def take(self, label: str, done: int, total: int) -> None:
        self.label, self.done, self.total = label, done, total

    def shown(self) -> dict[str, Any]:
        """As a line has it; only bytes whose total is known are told."""
        sizes = {"total": self.total, "completed": self.done} if self.total else {}
        return {"status": self.label, **sizes}


class PullAnswer:
    """An ASGI response. Whoever goes away ends his pull; the next goes on with what has come."""

    def __init__(self, pull: FetchModel, *, stream: bool) -> None:
        self._pull = pull
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        events = EventStream(send, media_type=LINES)
        progress = _Progress()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_gone, receive, nursery.cancel_scope)
            try:
                await self._told(events, progress)
            except ShoalError as error:
                log.info("a pull failed: %s", error.message)
                if not events.started:
                    await error_response(error, scope)(scope, receive, send)
                else:
                    await events.write(line(ollama_error(error)))
                    await events.end()
            else:
                if self._stream:
                    await events.write(line(SUCCESS))
                    await events.end()
                else:
                    await JSONResponse(SUCCESS)(scope, receive, send)
            nursery.cancel_scope.cancel()

    async def _told(self, events: EventStream, progress: _Progress) -> None:
        if not self._stream:
            await self._pull(progress.take)
            return
        failed: list[ShoalError] = []

        async def pull() -> None:
            try:
                await self._pull(progress.take)
            except ShoalError as error:
                failed.append(error)
            teller.cancel_scope.cancel()

        async with trio.open_nursery() as teller:
            teller.start_soon(pull)
            last = None
            while True:
                if (shown := progress.shown()) != last:
                    await events.write(line(shown))
                    last = shown
                await trio.sleep(LINE_EVERY_S)
        if failed:
            raise failed[0]
