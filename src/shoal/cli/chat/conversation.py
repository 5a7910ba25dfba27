"""What was said between the user and a model, and the file that it is kept in. Pure, but for the file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from shoal.errors import UsageError

MAX_FILE = 16 << 20
"""Bytes of a saved conversation that is read back; a longer one fits no model."""


class ChatTurn(Struct, frozen=True):
    """One message, as chat templates and the OpenAI API spell it."""

    role: Literal["system", "user", "assistant"]
    content: str


class Saved(Struct, frozen=True):
    """A conversation in a file: the beginning of a request to ``/v1/chat/completions``."""

    model: Annotated[str, Meta(min_length=1, max_length=4096)]
    messages: list[ChatTurn]


@dataclass(slots=True)
class Conversation:
    """With whom, about what, and what was said so far."""

    model: str
    system: str = ""
    """What the model is told before all else; nothing when empty."""
    turns: list[ChatTurn] = field(default_factory=list[ChatTurn])
    """Questions and answers in turn."""

    def whole(self) -> list[ChatTurn]:
        """All that the model is told, in order."""
        return ([ChatTurn("system", self.system)] if self.system else []) + self.turns

    def messages(self) -> list[dict[str, str]]:
        """The same as the chat template takes it."""
        return [{"role": message.role, "content": message.content} for message in self.whole()]

    def ask(self, text: str) -> None:
        """Add a question. One before it that was never answered is forgotten: templates want turns."""
        if self.turns and self.turns[-1].role == "user":
            self.turns.pop()
        self.turns.append(ChatTurn("user", text))

    def answer(self, text: str) -> None:
        self.turns.append(ChatTurn("assistant", text))

    def take_back(self) -> str:
        """Forget the last question and what followed it; returns the question.

        Raises:
            UsageError: nothing was asked yet.
        """
        asked = [place for place, message in enumerate(self.turns) if message.role == "user"]
        if not asked:
            raise UsageError("there is no question yet")
        text = self.turns[asked[-1]].content
        del self.turns[asked[-1] :]
        return text

    def save(self, path: Path) -> None:
        """Write it to a new file.

        Raises:
            UsageError: there is such a file already.
            OSError: it cannot be written.
        """
        data = msgspec.json.format(msgspec.json.encode(Saved(self.model, self.whole())), indent=2)
        try:
            with path.open("xb") as file:
                file.write(data + b"\n")
        except FileExistsError:
            raise UsageError(f"{path} already exists", check="choose another name") from None


def load(path: Path) -> Conversation:
    """A conversation that was saved.

    Raises:
        UsageError: the file holds none.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise UsageError(f"{path} is longer than {MAX_FILE >> 20} MiB")
    try:
        saved = msgspec.json.decode(data, type=Saved)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is no saved conversation: {error}") from error
    system = "\n\n".join(message.content for message in saved.messages if message.role == "system")
    return Conversation(saved.model, system, [m for m in saved.messages if m.role != "system"])
