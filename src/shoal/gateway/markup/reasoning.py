"""Reasoning before an answer: how a model is asked for it, and how it is parted from the answer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

NO_EFFORT = "none"
EFFORTS: Mapping[str, str] = {"minimal": "low", "xhigh": "high", "max": "high"}
"""Efforts beyond what models learned, and the next that they did."""


def reasoning_options(effort: str | None) -> dict[str, Any]:
    """What a chat template is told of how much the model is to think, in each family's words.

    A template looks at those that it knows: gpt-oss's at ``reasoning_effort``, Qwen's, SmolLM's and GLM's at
    ``enable_thinking``, Granite's and DeepSeek's at ``thinking``.

    Args:
        effort: ``"none"``, ``"low"``, ``"high"``, … in any API's words; ``None`` is the model's own way.
    """
    if effort is None:
        return {}
    wanted = effort != NO_EFFORT
    return {"reasoning_effort": EFFORTS.get(effort, effort), "enable_thinking": wanted, "thinking": wanted}


class ReasoningReader:
    """Parts the reasoning from the answer behind it. Blanks around the markers belong to neither.

    Args:
        markers: what opens and closes reasoning; ``None`` for an answer without one.
        inside: whether the answer begins within reasoning.
    """

    def __init__(self, markers: tuple[str, str] | None, *, inside: bool) -> None:
        self._opening, self._closing = markers or ("", "")
        self.inside = inside
        self._begun = inside or markers is None
        """Whether it is known if there is any."""
        self._after = False
        """Whether the answer behind the reasoning is yet to begin."""
        self._at_first = inside
        """Whether the reasoning is yet to begin."""
        self._held = ""

    @property
    def undecided(self) -> int:
        """Characters at the end of what was pushed that are not parted yet."""
        return len(self._held)

    def push(self, text: str) -> tuple[str, str]:
        """More of the reasoning, and more of the answer."""
        self._held += text
        if not self._begun and not self._begin():
            return "", ""
        reasoning = self._reason() if self.inside else ""
        return reasoning, "" if self.inside else self._answer()

    def finish(self) -> tuple[str, str]:
        """The rest of each."""
        rest, self._held = self._held, ""
        return (rest.rstrip(), "") if self.inside else ("", rest)

    def _begin(self) -> bool:
        """Find out whether a reasoning begins. False until that is known."""
        text = self._held.lstrip()
        if self._opening.startswith(text) and text != self._opening:
            return False
        self._begun = True
        if text.startswith(self._opening):
            self._held = text[len(self._opening) :]
            self.inside = self._at_first = True
        return True

    def _reason(self) -> str:
        if self._at_first:
            text = self._held.lstrip()
            if self._opening.startswith(text):  # some open again what the template has opened
                return ""
            self._held = text.removeprefix(self._opening).lstrip()
            self._at_first = not self._held
        place = self._held.find(self._closing)
        if place >= 0:
            reasoning, self._held = self._held[:place].rstrip(), self._held[place + len(self._closing) :]
            self.inside, self._after = False, True
            return reasoning
        held = self._held[: len(self._held) - overlap(self._held, (self._closing,))]
        reasoning = held.rstrip()
        self._held = self._held[len(reasoning) :]
        return reasoning

    def _answer(self) -> str:
        text, self._held = self._held, ""
        if self._after:
            text = text.lstrip()
            self._after = not text
        return text


def overlap(text: str, markers: Collection[str]) -> int:
    """How many characters at the end of ``text`` may begin one of ``markers``."""
    most = min(len(text), max(map(len, markers), default=0))
    return next((n for n in range(most, 0, -1) if any(m.startswith(text[-n:]) for m in markers)), 0)
