"""What an answer comes to, as it is read: every face of the gateway is told of the same events."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reasoning:
    """What the model thinks, before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """The model has begun to call a function."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsDelta:
    """More of the arguments, as JSON text."""

    index: int
    text: str


AnswerEvent = str | Reasoning | CallStart | ArgumentsDelta
"""A text is the answer's own."""
