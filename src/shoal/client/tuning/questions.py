"""The questions of tuning that wait for answers: each goes to one hop, and stands by itself."""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from shoal.errors import ChannelClosed, DeadlineExceeded, RemoteProtocolError, from_code
from shoal.net.channel import Channel
from shoal.wire.training import NotTrained, Train, Trained


@dataclass(eq=False)
class _Question:
    channel: Channel
    asked: Train
    answered: trio.Event = field(default_factory=trio.Event)
    answer: Trained | NotTrained | None = None
    payload: bytes = b""
    lost: str = ""


class TrainingQuestions:
    """Those of one client."""

    def __init__(self) -> None:
        self._asked = 0
        self._waiting: dict[int, _Question] = {}

    def number(self) -> int:
        """For the next question."""
        self._asked += 1
        return self._asked

    async def ask(self, channel: Channel, asked: Train, payload: bytes, within_s: float) -> bytes:
        """The payload of the answer.

        Raises:
            ChannelClosed: the hop is gone.
            DeadlineExceeded: it does not answer in time.
            RemoteProtocolError: its answer has another size than it must.
            ShoalError: why it does not do it.
        """
        question = self._waiting[asked.number] = _Question(channel, asked)
        try:
            with trio.move_on_after(within_s):
                await channel.send(asked, payload)
                await question.answered.wait()
        finally:
            del self._waiting[asked.number]
        match question.answer:
            case Trained():
                return question.payload
            case NotTrained(code=code, message=message, retry_after_s=retry_after_s):
                raise from_code(code, message, retry_after_s=retry_after_s)
            case None if question.lost:
                raise ChannelClosed(f"{channel.peer} is gone: {question.lost}")
            case None:
                raise DeadlineExceeded(f"{channel.peer} gave no answer within {within_s:.0f} s")

    def answered(self, channel: Channel, message: Trained | NotTrained, payload: bytes) -> None:
        """Take an answer in. Raises RemoteProtocolError: it answers nothing that this peer was asked."""
        question = self._waiting.get(message.number)
        if question is None:
            if message.number <= self._asked:
                return  # it comes too late
            raise RemoteProtocolError("an answer to a question of tuning that nobody asked")
        if question.channel is not channel:
            raise RemoteProtocolError("an answer to a question of tuning that another peer was asked")
        if isinstance(message, Trained) and message.size != question.asked.answer_size:
            raise RemoteProtocolError(
                f"{message.size} bytes in answer to a question of tuning, not {question.asked.answer_size}"
            )
        question.answer, question.payload = message, payload
        question.answered.set()

    def holds(self, channel: Channel) -> bool:
        """Whether an answer is waited for over this channel."""
        return any(question.channel is channel for question in self._waiting.values())

    def lost(self, channel: Channel, reason: str) -> None:
        """A channel has ended: who waits for an answer over it hears so."""
        for question in self._waiting.values():
            if question.channel is channel:
                question.lost = reason or "its channel has ended"
                question.answered.set()
