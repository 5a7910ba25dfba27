"""Reads the answers of gpt-oss: messages, each with a header that says in which channel it is and to whom.

``<|channel|>analysis<|message|>…<|end|>`` is reasoning, ``<|channel|>final<|message|>…`` is read by people,
and ``<|channel|>commentary to=functions.f <|constrain|>json<|message|>{…}<|call|>`` calls.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from shoal.gateway.markup.arguments import NAME
from shoal.gateway.markup.dialects import GPT_OSS
from shoal.gateway.markup.events import AnswerEvent, ArgumentsDelta, CallStart, Reasoning
from shoal.gateway.markup.reasoning import overlap

MARKERS = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>")
_IN_HEADERS = MARKERS[:3]
MAX_HEADER = 512
"""Characters. What is longer is no header."""
_TO = re.compile(rf"to=(?:functions\.)?({NAME})")
_ANALYSIS = re.compile(r"<\|channel\|>\s*analysis")
BETWEEN = "\n\n"
"""Between two messages of one channel, which become one text."""


class HarmonyReader:
    """Parts an answer into reasoning, text and calls.

    Args:
        functions: the names that may be called; ``None`` where nothing is a call.
        barred: the names whose calls stay text.
    """

    def __init__(self, functions: Collection[str] | None, barred: Collection[str] = ()) -> None:
        self.calls = 0
        self.reasoning_tokens = 0
        self._functions = functions
        self._barred = barred
        self._held = ""
        self._header: str | None = None
        """What has come of a message's header; ``None`` within its body."""
        self._kind: type[Reasoning] | type[str] | type[ArgumentsDelta] = str
        self._begun = False
        self._written: set[object] = set()
        """The kinds of which something was said already."""
        self._at_first = True
        self._lines = ""
        """Ends of lines that belong to a text if more of it comes."""

    @property
    def undecided(self) -> int:
        """As of an ``AnswerReader``."""
        return len(self._lines) + len(self._held)

    def push(self, text: str) -> list[AnswerEvent]:
        """What is certain now."""
        self._held += text
        said: list[AnswerEvent] = []
        if self._begun or self._begin():
            while (found := self._step()) is not None:
                said += found
        self.reasoning_tokens += self._kind is Reasoning
        return said

    def finish(self) -> list[AnswerEvent]:
        """The rest, at the end of the answer."""
        rest, self._held = self._held, ""
        said = self._body(rest) if self._header is None else []
        lines, self._lines = self._lines, ""
        return [*said, lines] if lines else said

    def _begin(self) -> bool:
        """The prompt ends with ``<|start|>assistant``, and the header may go on from there."""
        text = self._held.lstrip()
        if "to=".startswith(text) and text != "to=":
            return False
        if text.startswith("to="):
            self._header = ""
        self._begun = True
        return True

    def _step(self) -> list[AnswerEvent] | None:
        found = [(place, marker) for marker in MARKERS if (place := self._held.find(marker)) >= 0]
        place, marker = min(found, default=(len(self._held) - overlap(self._held, MARKERS), ""))
        part, self._held = self._held[:place], self._held[place + len(marker) :]
        if self._header is None:
            said = self._body(part)
        else:
            self._header, said = self._header + part, []
            if len(self._header) > MAX_HEADER:
                text, self._header = self._header, None
                return self._body(text + marker)
        if not marker:
            return said or None
        return said + self._marker(marker)

    def _marker(self, marker: str) -> list[AnswerEvent]:
        if marker == "<|message|>" and self._header is not None:
            header, self._header = self._header, None
            return self._enter(header)
        if marker in _IN_HEADERS:
            said = self._leave() if self._header is None else []
            self._header = (self._header or "") + marker
            return said
        said = self._leave()
        self._header, self._kind = None, str
        return said

    def _enter(self, header: str) -> list[AnswerEvent]:
        """The body of a message begins."""
        self._at_first, self._lines = True, ""
        to = _TO.search(header)
        called = to is not None and to[1] != "assistant" and to[1] not in self._barred
        if to is not None and called and self._functions is not None:
            self._kind = ArgumentsDelta
            self.calls += 1
            return [CallStart(self.calls - 1, GPT_OSS.new_id(), to[1])]
        self._kind = Reasoning if _ANALYSIS.search(header) else str
        return []

    def _body(self, text: str) -> list[AnswerEvent]:
        if self._at_first:
            text = text.lstrip() if self._kind is not str else text
            if not text:
                return []
        if self._kind is ArgumentsDelta:
            self._at_first = False
            return [ArgumentsDelta(self.calls - 1, text)] if text else []
        text = self._lines + text
        kept = text.rstrip("\n")
        self._lines = text[len(kept) :]
        if not kept:
            return []
        if self._at_first and self._kind in self._written:
            kept = BETWEEN + kept
        self._at_first = False
        self._written.add(self._kind)
        return [Reasoning(kept)] if self._kind is Reasoning else [kept]

    def _leave(self) -> list[AnswerEvent]:
        """The body of a message has ended. A call without arguments has none."""
        empty = self._kind is ArgumentsDelta and self._at_first and self._header is None
        self._kind, self._at_first, self._lines = str, True, ""
        return [ArgumentsDelta(self.calls - 1, "{}")] if empty else []
