"""The client's process as the lab sees it: it is asked, killed, and another one takes its place."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import trio

from shoal.config import Settings
from shoal.errors import DeadlineExceeded, ShoalError
from shoal.local.processes import START_WITHIN_S, Process, spawn
from shoal.testing.lab.pay.customer import CustomerAnswer, CustomerOrder, Question

KILLED = "the client was killed"
END_WITHIN_S = 10.0


class CustomerProcess:
    """See the module.

    Args:
        home: the client's own, with its wallet and its books.
        processes: those that end with the lab.
        nursery: in which it is listened to.
    """

    def __init__(
        self,
        settings: Settings,
        home: Path,
        order: CustomerOrder,
        processes: list[Process],
        nursery: trio.Nursery,
    ) -> None:
        self._settings = settings
        self._home = home
        self._order = order
        self._processes = processes
        self._nursery = nursery
        self._process: Process | None = None
        self._asked: dict[int, tuple[trio.Event, list[CustomerAnswer]]] = {}
        self._number = 0
        self._sending = trio.Lock()

    async def start(self) -> None:
        """Start a process, and wait until it can be asked.

        Raises:
            ShoalError: it has ended.
            DeadlineExceeded: it takes too long.
        """
        order = msgspec.json.encode(self._order).decode()
        module = ["shoal.testing.lab.pay.customer", order]
        process = self._process = await spawn(module, self._settings, self._home, self._processes)
        with trio.move_on_after(START_WITHIN_S):
            await process.event("ready")
            self._nursery.start_soon(self._listen, process)
            return
        raise DeadlineExceeded(f"the client did not start within {START_WITHIN_S:.0f} s")

    async def ask(self, swarm: str, asked: Mapping[str, Any]) -> CustomerAnswer:
        """Have something asked, and wait for what comes of it; where the process is killed, that it was.

        Args:
            asked: the other fields of a :class:`Question`.
        """
        self._number += 1
        question = Question(number=self._number, swarm=swarm, **asked)
        told, answers = self._asked[question.number] = trio.Event(), list[CustomerAnswer]()
        try:
            async with self._sending:
                stdin = self._process.process.stdin if self._process is not None else None
                if stdin is None:
                    return CustomerAnswer(number=question.number, failure=KILLED)
                await stdin.send_all(msgspec.json.encode(question) + b"\n")
            await told.wait()
            return answers[0]
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return CustomerAnswer(number=question.number, failure=KILLED)
        finally:
            del self._asked[question.number]

    async def kill(self) -> None:
        """SIGKILL the process, if it has not ended."""
        process, self._process = self._process, None
        if process is not None:
            process.signal(signal.SIGKILL)
            await process.process.wait()
            self._processes.remove(process)

    async def end(self) -> None:
        """Let the process end, as all that was asked has been answered."""
        if self._process is not None and self._process.process.stdin is not None:
            await self._process.process.stdin.aclose()
            with trio.move_on_after(END_WITHIN_S):
                await self._process.process.wait()
            await self.kill()

    async def _listen(self, process: Process) -> None:
        try:
            while True:
                self._note(msgspec.convert(await process.event("answer"), CustomerAnswer))
        except ShoalError:  # it has ended
            for number in list(self._asked):
                self._note(CustomerAnswer(number=number, failure=KILLED))

    def _note(self, answer: CustomerAnswer) -> None:
        if answer.number in self._asked:
            told, answers = self._asked[answer.number]
            answers.append(answer)
            told.set()
