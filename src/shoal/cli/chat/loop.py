"""The loop of a conversation: a line in, an answer or a command's effect out."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from shoal.cli.ask import AnswerRequest, answer_fields, put, route_table, say_way, show
from shoal.cli.chat import commands, conversation
from shoal.cli.chat.conversation import Conversation
from shoal.cli.chat.reader import Reader
from shoal.cli.chat.screen import Screen, screen
from shoal.cli.output import emit, printable, report, say
from shoal.cli.progress import working
from shoal.errors import PromptTooLong, ShoalError, UsageError
from shoal.tasks import one_error

if TYPE_CHECKING:
    from shoal.client.answer import Answer
    from shoal.client.swarm import Swarm
    from shoal.types import ModelShape

MODELS_WITHIN_S = 3.0
MODELS_SHOWN = 32
"""Seconds that ``/model`` waits to hear of a model that somebody serves."""


@dataclass
class Talk:
    """One conversation over a swarm.

    Args:
        asking: everything of a question but the conversation: the limit, the sampling, the format.
        forgiving: an error is shown and the conversation goes on, as a person wants it; else it is raised,
            as a script does.
    """

    swarm: Swarm
    conversation: Conversation
    asking: AnswerRequest
    forgiving: bool
    screen: Callable[[], AbstractContextManager[Screen]] = screen
    last: tuple[Answer, AnswerRequest] | None = field(default=None, init=False)

    async def run(self, reader: Reader) -> None:
        """Talk until the reader has no more, or ``/quit``.

        Raises:
            KeyboardInterrupt: Ctrl-C at an empty prompt.
            ShoalError: unless ``forgiving``.
        """
        going = True
        while going and (line := await reader.read()) is not None:
            try:
                going = await self._take(line)
            except (ShoalError, OSError) as error:
                if not self.forgiving:
                    raise
                self._show_error(error)

    async def _take(self, line: str) -> bool:
        """Do what the line says; whether the conversation goes on."""
        found = commands.parse(line)
        if found is None:
            await self._ask(commands.question(line))
            return True
        command, argument = found
        match command.name:
            case "quit":
                return False
            case "help":
                say(commands.help_text())
            case "new":
                self.conversation.turns.clear()
                say("new conversation")
            case "model":
                await self._model(argument)
            case "system":
                self._system(argument)
            case "retry":
                await self._ask(self.conversation.take_back())
            case "route":
                self._route()
            case "save":
                self._save(argument)
            case _:
                self._load(argument)
        return True

    async def _ask(self, text: str) -> None:
        self.conversation.ask(text)
        question = replace(self.asking, model=self.conversation.model, messages=self.conversation.messages())
        answer = put(self.swarm, question)
        try:
            with self.screen() as shown:
                stopped = await stoppable(lambda: show(answer, question.model, shown))
        except PromptTooLong as error:
            if len(question.messages) > 1:
                error.next_command = "/new, and the question again"
            raise
        self.last = answer, question
        if answer.text:
            self.conversation.answer(answer.text)
        if stopped:
            say("stopped")
        if self.forgiving:
            say_way(answer)

    async def _model(self, name: str) -> None:
        if name:
            with working(f"looking for {name}"):
                local = await self.swarm.resolve(name)
            self.conversation.model = name
            say(f"now {printable(local.name)}, in the same conversation")
            return
        with trio.move_on_after(MODELS_WITHIN_S):
            while not self._language_models():
                await self.swarm.member.wait_changed()
        for shape in self._language_models()[:MODELS_SHOWN]:
            gap = "" if all(self.swarm.coverage(shape.digest)) else ", with gaps"
            here = "*" if shape.name == self.conversation.model else " "
            say(f"{here} {printable(shape.name)}  {shape.n_blocks} blocks{gap}")
        if not self._language_models():
            say("no node serves a model now")

    def _language_models(self) -> list[ModelShape]:
        """What can be talked with: no graphs."""
        return [shape for shape in self.swarm.models() if shape.kind == "language"]

    def _system(self, text: str) -> None:
        if text:
            self.conversation.system = text.strip('"').strip()
        said = self.conversation.system
        say(f"system message: {said}" if said else "there is no system message")

    def _route(self) -> None:
        if self.last is None:
            raise UsageError("there is no answer yet")
        fields = answer_fields(*self.last)
        emit(fields, False, lambda: route_table(fields))

    def _save(self, name: str) -> None:
        path = Path(name or f"shoal-chat-{datetime.now():%Y%m%d-%H%M%S}.json").expanduser()
        self.conversation.save(path)
        say(f"saved in {path}")

    def _load(self, name: str) -> None:
        self.conversation = conversation.load(Path(name).expanduser())
        say(f"{len(self.conversation.turns)} messages with {self.conversation.model}")

    def _show_error(self, error: ShoalError | OSError) -> None:
        if isinstance(error, OSError):
            error = UsageError(f"{error.filename}: {error.strerror}", check="check the file's name")
        report(error, as_json=False)


async def stoppable(use: Callable[[], Awaitable[None]]) -> bool:
    """Run ``use`` until it is done, or until Ctrl-C; whether it was stopped."""
    stopped = False
    with trio.open_signal_receiver(signal.SIGINT) as signals, one_error():
        async with trio.open_nursery() as nursery:

            async def stop() -> None:
                nonlocal stopped
                await anext(signals)
                stopped = True
                nursery.cancel_scope.cancel()

            nursery.start_soon(stop)
            await use()
            nursery.cancel_scope.cancel()
    return stopped
