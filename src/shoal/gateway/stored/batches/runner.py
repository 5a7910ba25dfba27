"""Works on batches while the gateway runs: their lines one by one, where nobody else is waiting."""

from __future__ import annotations

import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import trio

from shoal.client.rollouts.pace import pause_s
from shoal.errors import OutOfResources
from shoal.gateway.access.keys import Caller
from shoal.gateway.errors import AGAIN, MAYBE_AGAIN, BadRequest, NotFound, body_of
from shoal.gateway.stored.batches.batch import BatchError, StoredBatch
from shoal.gateway.stored.batches.in_process import AskRoute, RouteAnswer
from shoal.gateway.stored.batches.lines import (
    BatchLine,
    answered,
    check_lines,
    custom_id_of,
    not_answered,
    read_line,
)
from shoal.gateway.stored.batches.pace import AT_ONCE, may_begin
from shoal.gateway.stored.batches.store import OUTPUT_BYTES, BatchStore, HeldBatch
from shoal.gateway.stored.files import PIECE_LINES

LOOK_EVERY_S = 0.25
"""Whether somebody waits, while there is a batch to work on."""
HOLD_EVERY_S = 10.0
LINE_WITHIN_S = 3600.0
TRIES = 3
"""Of a request whose nodes have failed; where the swarm is full or lacks blocks it is tried until the batch
expires."""
OK = 200

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Work:
    """A batch in hand."""

    held: HeldBatch
    todo: deque[int]
    written: int
    running: dict[int, trio.CancelScope] = field(default_factory=dict[int, trio.CancelScope])
    """The lines that are answered now."""
    tries: dict[int, int] = field(default_factory=dict[int, int])
    fault: BatchError | None = None
    """Why the rest of it cannot be answered; it ends once what is answered now is."""
    failures: int = 0
    """In a row."""
    not_before: float = 0.0

    @property
    def batch(self) -> StoredBatch:
        return self.held.batch

    def stop(self) -> None:
        """Give up what is answered now."""
        for scope in self.running.values():
            scope.cancel()

    def again(self, number: int, asked_s: float, now: float) -> None:
        """Try a line again later, behind all others."""
        self.tries[number] = self.tries.get(number, 0) + 1
        self.failures += 1
        self.not_before = now + pause_s(self.failures, asked_s)
        self.todo.append(number)


@dataclass(slots=True)
class _Pause:
    failures: int = 0
    """In a row."""
    until: float = 0.0


class BatchRunner:
    """Makes each line's request of the gateway's own routes.

    Args:
        callers: who has an id now; ``None`` if nobody.
        awaited: how many requests somebody waits for.
    """

    def __init__(
        self,
        store: BatchStore,
        ask: AskRoute,
        callers: Callable[[str], Caller | None],
        awaited: Callable[[], int],
    ) -> None:
        self._store = store
        self._ask = ask
        self._callers = callers
        self._awaited = awaited
        self._name = secrets.token_hex(8)
        self._works: dict[str, _Work] = {}
        self._changed = trio.Event()
        self._held_at = -HOLD_EVERY_S
        self._began_at = 0.0
        self._pauses: dict[str, _Pause] = {}
        """Of batches of which something could not be written."""
        self._turns: dict[str, int] = {}
        """When each caller's last line began, counted in lines of all."""

    @property
    def unfinished(self) -> int:
        """Batches that this gateway works on."""
        return len(self._works)

    def look(self) -> None:
        """Something was added or cancelled."""
        self._held_at = -HOLD_EVERY_S
        self._changed.set()

    async def run(self) -> None:
        """Work until cancelled."""
        self._began_at = trio.current_time()
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    try:
                        await self._step(nursery)
                    except OutOfResources as error:  # a full disk must not end the gateway
                        log.warning("batches wait: %s", error.message)
                        self._held_at = trio.current_time()
                    except Exception:  # nor must a defect that batches have met
                        log.exception("batches wait: a defect")
                        self._held_at = trio.current_time()
                    with trio.move_on_after(LOOK_EVERY_S if self._works else HOLD_EVERY_S):
                        await self._changed.wait()
                    self._changed = trio.Event()
        finally:
            with trio.CancelScope(shield=True):
                try:
                    await self._store.database.run(self._store.release, self._name)
                except OutOfResources as error:  # others wait until the hold is over
                    log.warning("batches are not released: %s", error.message)

    async def _step(self, nursery: trio.Nursery) -> None:
        if trio.current_time() - self._held_at >= HOLD_EVERY_S:
            self._held_at = trio.current_time()
            await self._take(await self._store.database.run(self._store.hold, self._name))
        for work in list(self._works.values()):
            if self._may_try(work.batch.id):
                await self._guarded(work.held, partial(self._settle, work))
        while (work := self._next()) is not None:
            number = work.todo.popleft()
            work.running[number] = scope = trio.CancelScope()
            self._began_at = trio.current_time()
            self._turns[work.held.caller] = 1 + max(self._turns.values(), default=0)
            nursery.start_soon(self._run_line, work, number, scope)

    async def _take(self, held: list[HeldBatch]) -> None:
        """Take up what is new, and drop what others have, or what was deleted with its key."""
        ids = {one.batch.id for one in held}
        for id in [id for id in self._works if id not in ids]:
            self._works.pop(id).stop()
        self._pauses = {id: pause for id, pause in self._pauses.items() if id in ids}
        callers = {one.caller for one in held}
        self._turns = {caller: turn for caller, turn in self._turns.items() if caller in callers}
        for one in held:
            work = self._works.get(one.batch.id)
            if work is not None:
                work.held = one
            elif self._may_try(one.batch.id):
                await self._guarded(one, partial(self._begin, one))

    async def _guarded(self, held: HeldBatch, do: Callable[[], Awaitable[None]]) -> None:
        """Let what one batch has met be its own: a database that does not take what it writes is tried again
        later, and an error that nobody foresaw ends this batch alone, and is said in it."""
        id = held.batch.id
        try:
            try:
                await do()
            except OutOfResources:
                raise
            except Exception:
                log.exception("%s: a defect", id)
                work = self._works.pop(id, None)
                if work is not None:
                    work.stop()
                why = "a defect of Shoal; the gateway's log has it"
                defect = BatchError(code="internal_error", message=why)
                await self._change(held, lambda b, now: b.to("failed", now, errors=(defect,)))
        except OutOfResources as error:
            pause = self._pauses.setdefault(id, _Pause())
            pause.failures += 1
            pause.until = trio.current_time() + pause_s(pause.failures)
            log.warning("%s waits: %s", id, error.message)
        else:
            self._pauses.pop(id, None)

    def _may_try(self, id: str) -> bool:
        pause = self._pauses.get(id)
        return pause is None or trio.current_time() >= pause.until

    async def _begin(self, held: HeldBatch) -> None:
        """Read a batch's file, and leave out what was answered before this gateway started."""
        batch = held.batch
        files = self._store.files
        check = partial(_check, files.lines, batch)
        numbers, errors = await self._store.database.run(check)
        if errors:
            await self._change(held, lambda b, now: b.to("failed", now, errors=tuple(errors)))
            return
        if batch.status == "validating":
            held = await self._change(held, lambda b, now: b.to("in_progress", now, total=len(numbers)))
        done = await self._store.database.run(self._store.done, batch)
        written = await self._store.database.run(self._store.written, batch)
        todo = deque(number for number in numbers if number not in done)
        if not held.batch.ended:
            self._works[batch.id] = _Work(held, todo, written)

    async def _settle(self, work: _Work) -> None:
        """End a batch that has come to its end."""
        if work.batch.status == "cancelling":
            work.stop()
        if work.running:
            return
        if self._callers(work.held.caller) is None:
            gone = BatchError(code="key_revoked", message="the key that made the batch is no longer good")
            await self._end(work, lambda b, now: b.to("failed", now, errors=(gone,)))
        elif work.batch.status == "cancelling":
            await self._end(work, lambda b, now: b.to("cancelled", now))
        elif (fault := work.fault) is not None:
            await self._end(work, lambda b, now: b.to("failed", now, errors=(fault,)))
        elif not work.todo:
            await self._end(work, lambda b, now: b.to("finalizing", now).to("completed", now))
        elif self._store.clock() >= work.batch.expires:
            await self._store.database.run(self._expire, work)
            await self._end(work, lambda b, now: b.to("expired", now))

    def _expire(self, work: _Work) -> None:
        """Say of every request that is left that it was not answered. Runs on a thread."""
        left, said = set(work.todo), list[tuple[int, bytes]]()
        for number, data in self._store.files.lines(work.batch.input_file):
            if number in left:
                why = "the batch expired before this request was answered"
                said.append((number, not_answered(custom_id_of(data), "batch_expired", why)))
            if len(said) == PIECE_LINES:
                self._store.put(work.batch, said, failed=True)
                said.clear()
        self._store.put(work.batch, said, failed=True)

    async def _end(self, work: _Work, change: Callable[[StoredBatch, float], StoredBatch]) -> None:
        await self._change(work.held, change)
        self._works.pop(work.batch.id, None)

    async def _change(
        self, held: HeldBatch, change: Callable[[StoredBatch, float], StoredBatch]
    ) -> HeldBatch:
        now = self._store.clock()

        def changed(batch: StoredBatch) -> StoredBatch:
            return change(batch, now)

        try:
            batch = await self._store.database.run(self._store.change, held.caller, held.batch.id, changed)
        except NotFound:  # it was deleted with its key
            return replace(held, batch=held.batch.to("failed", now))
        return replace(held, batch=batch)

    def _next(self) -> _Work | None:
        """The batch whose line is to begin now: of the key with the fewest that run the oldest, and of those
        keys the one whose last line began first."""
        running = sum(len(work.running) for work in self._works.values())
        now = trio.current_time()
        if not may_begin(self._awaited(), running, now - self._began_at):
            return None
        ready = [work for work in self._works.values() if self._is_ready(work, now)]
        return min(ready, key=self._order, default=None)

    def _order(self, work: _Work) -> tuple[int, int, float]:
        caller = work.held.caller
        return self._running_of(caller), self._turns.get(caller, 0), work.batch.created

    def _is_ready(self, work: _Work, now: float) -> bool:
        caller = self._callers(work.held.caller)
        if caller is None or not work.todo or work.batch.status != "in_progress" or now < work.not_before:
            return False
        most = min(AT_ONCE, caller.limits.concurrency or AT_ONCE)
        expired = self._store.clock() >= work.batch.expires
        return not expired and self._running_of(work.held.caller) < most

    def _running_of(self, caller: str) -> int:
        return sum(len(work.running) for work in self._works.values() if work.held.caller == caller)

    async def _run_line(self, work: _Work, number: int, scope: trio.CancelScope) -> None:
        try:
            with scope:
                await self._answer_or_fail(work, number)
        except OutOfResources as error:  # a full disk must not lose the line
            log.warning("line %d of %s waits: %s", number, work.batch.id, error.message)
            work.again(number, 0.0, trio.current_time())
        except Exception:  # nor must a defect, before its word of it is kept
            log.exception("line %d of %s waits: a defect", number, work.batch.id)
            work.again(number, 0.0, trio.current_time())
        finally:
            del work.running[number]
            self._changed.set()

    async def _answer_or_fail(self, work: _Work, number: int) -> None:
        """Let an error that nobody foresaw be the line's own, and not the end of all else."""
        try:
            await self._answer_line(work, number)
        except OutOfResources:
            raise
        except Exception:
            log.exception("line %d of %s: a defect", number, work.batch.id)
            data = await self._store.database.run(self._store.files.line, work.batch.input_file, number)
            why = "a defect of Shoal; the gateway's log has it"
            said = not_answered(custom_id_of(data or b""), "internal_error", why)
            await self._put(work, number, said, failed=True)

    async def _answer_line(self, work: _Work, number: int) -> None:
        batch = work.batch
        data = await self._store.database.run(self._store.files.line, batch.input_file, number)
        caller = self._callers(work.held.caller)
        if caller is None:
            return
        if data is None:
            work.todo.clear()
            gone = "the input file was deleted or has expired"
            work.fault = BatchError(code="file_gone", message=gone)
            return
        line = read_line(data, batch.endpoint)
        if work.written > OUTPUT_BYTES:
            said = not_answered(
                line.custom_id, "output_too_large", f"the batch has written {OUTPUT_BYTES} bytes already"
            )
            await self._put(work, number, said, failed=True)
            return
        answer = await self._asked(batch, line, caller)
        maybe = answer.status in MAYBE_AGAIN and work.tries.get(number, 0) < TRIES - 1
        if answer.status in AGAIN or maybe:
            work.again(number, answer.retry_after_s, trio.current_time())
            return
        work.failures = 0
        said = answered(line.custom_id, answer.status, answer.request_id, answer.body)
        await self._put(work, number, said, failed=answer.status != OK)

    async def _put(self, work: _Work, number: int, data: bytes, *, failed: bool) -> None:
        put = partial(self._store.put, work.batch, [(number, data)], failed=failed)
        await self._store.database.run(put)
        work.written += len(data)

    async def _asked(self, batch: StoredBatch, line: BatchLine, caller: Caller) -> RouteAnswer:
        body: dict[str, Any] = line.body
        if body.get("stream"):
            refused = BadRequest("stream must be false: a batch is answered into a file", param="stream")
            return RouteAnswer(400, "", body_of(refused))
        if batch.endpoint == "/v1/responses":
            store = body.get("store")
            body = body | {"store": False if store is None else store}  # or it pushes conversations out
        caller = replace(caller, background=True, protect=batch.protect or caller.protect)
        with trio.move_on_after(LINE_WITHIN_S):
            return await self._ask(batch.endpoint, body, caller)
        return RouteAnswer(504, "", {"error": {"message": f"no answer within {LINE_WITHIN_S:.0f} s"}})


def _check(lines: Callable[[str], Any], batch: StoredBatch) -> tuple[list[int], list[BatchError]]:
    return check_lines(lines(batch.input_file), batch.endpoint)
