"""``/v1/audio``: a recording comes as a form, and what is said in it goes back in OpenAI's words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from functools import partial

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.routing import Route

from shoal.client.seq2seq.speech import Task
from shoal.client.swarm import Swarm
from shoal.gateway.access.allowance import RETRY_S
from shoal.gateway.access.counted import CountedRoute
from shoal.gateway.access.guard import caller_of
from shoal.gateway.access.protection import unaudited_caller
from shoal.gateway.audio.exchange import AudioExchange, Recording
from shoal.gateway.body import checked, read_form
from shoal.gateway.errors import BadRequest, LimitReached
from shoal.gateway.exchange import Desk
from shoal.gateway.models import Models
from shoal.gateway.schema.audio import AudioRequest

MAX_FILE = 25 << 20
"""Bytes, as OpenAI has it: 13 minutes of 16-bit sound at 16 kHz."""
AROUND = 64 << 10
"""Bytes that a form may have beside the file."""
UPLOADS = 8
"""Recordings at once, of all callers: each is in memory until it is written down."""
UPLOADS_EACH = 4
"""Of one caller."""
PARTS = ("timestamp_granularities[]", "include[]", "chunking_strategy")
"""Fields of OpenAI's that ask for what is not given here."""


class AudioRoutes:
    """The routes of OpenAI's that take recordings."""

    def __init__(self, desk: Desk, models: Models, swarm: Swarm) -> None:
        self._desk = desk
        self._models = models
        self._swarm = swarm
        self._open = Counter[str]()

    def routes(self) -> list[Route]:
        counted = partial(CountedRoute, self._desk.limits, awaited=True)
        return [
            Route(f"/v1/audio/{name}", counted(partial(self._answer, task)), methods=["POST"])
            for name, task in _ROUTES.items()
        ]

    async def _answer(self, task: Task, request: Request) -> AudioExchange:
        caller = caller_of(request)
        with ExitStack() as held:
            held.enter_context(self._under_way(caller.id))
            form = await read_form(request, MAX_FILE + AROUND)
            try:
                file, body = _parts(form)
                data = await file.read()
            finally:
                await form.close()
            caller = unaudited_caller(request, body.protect)
            recording = Recording(await self._models.find(body.model), body, task, data)
            return AudioExchange(self._desk, self._swarm, caller, recording, held.pop_all())

    @contextmanager
    def _under_way(self, caller: str) -> Generator[None]:
        """Count a recording. Raises LimitReached: there are too many, of this caller or of all."""
        if self._open[caller] >= UPLOADS_EACH or self._open.total() >= UPLOADS:
            raise LimitReached(
                f"{self._open[caller]} recordings of this key are on their way, and {self._open.total()} of "
                f"all; {UPLOADS_EACH} and {UPLOADS} are the most",
                retry_after_s=RETRY_S,
            )
        self._open[caller] += 1
        try:
            yield
        finally:
            self._open[caller] -= 1
            self._open += Counter[str]()  # forgets whoever has none


def _parts(form: FormData) -> tuple[UploadFile, AudioRequest]:
    """The file and the fields beside it.

    Raises:
        BadRequest: one is missing, or asks for what is not given here.
    """
    file = form.get("file")
    if not isinstance(file, UploadFile) or not file.size:
        raise BadRequest("file is missing, empty, or no file", param="file")
    if given := next((name for name in PARTS if name in form), None):
        raise BadRequest(f"{given} is not taken here: a recording becomes text without times", param=given)
    fields = {name: value for name, value in form.items() if isinstance(value, str)}
    return file, checked(AudioRequest, fields)


_ROUTES: dict[str, Task] = {"transcriptions": "transcribe", "translations": "translate"}
