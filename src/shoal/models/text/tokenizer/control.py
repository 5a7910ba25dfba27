"""Control words: texts like ``<|im_end|>`` that are one token, and that mean something to the model.

A template writes them to say who speaks. When a user, a tool or an assistant writes the same letters, they
are letters. So a prompt is encoded by a second tokenizer that knows every control word under another name,
with a signature before it that nobody can guess, and calls the template's own by that name. All else is as in
the first: what is around a word is cut and joined as before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from random import SystemRandom
from typing import Any, Protocol, cast

TextSpans = Sequence[tuple[int, int]]
"""Parts of a text, from and to, in order."""
TAG = re.compile(r"[<\[({].*[>\])}]", re.DOTALL)
"""What a word looks like that may mean something; tokens for blanks or for whole words are none."""
MEANT = re.compile(r"<[|｜].*[|｜]>|</?(think|tools?|tool_call|tool_response)>", re.DOTALL)
"""What it looks like where it always does. Others may be text: Gemma has a token for ``<h1>``."""
SIGNED_BY = 4
"""Letters of a signature, each one of 65,000."""


class AddedWord(Protocol):
    """A token beside those of the vocabulary."""

    @property
    def content(self) -> str: ...

    @property
    def special(self) -> bool: ...


class ControlWords:
    """A tokenizer's control words: its special tokens, and others that look so or that the template uses."""

    def __init__(self, added: Mapping[int, AddedWord], template: str) -> None:
        self.ids = {
            token.content: index
            for index, token in added.items()
            if token.content.strip() and (token.special or _means(token.content, template))
        }
        self._any = re.compile(_any_of(sorted(self.ids)) if self.ids else "(?!)")
        chance = (
            SystemRandom()
        )  # what `secrets` draws from; that one loads OpenSSL, in each tokenizer's process
        self._signature = "".join(chr(0x100000 + chance.randrange(0xFFFE)) for _ in range(SIGNED_BY))

    def are_in(self, text: str) -> bool:
        """Whether ``text`` holds a control word."""
        return self._any.search(text) is not None

    def found(self, text: str) -> list[tuple[int, int]]:
        """Where ``text`` has control words."""
        return [match.span() for match in self._any.finditer(text)]

    def own(self, text: str, foreign: TextSpans) -> list[tuple[int, int]]:
        """Where ``text`` has control words that are not touched by what is ``foreign``."""
        found: list[tuple[int, int]] = []
        place = 0
        for start, end in (*foreign, (len(text), len(text))):
            found += [(place + a, place + b) for a, b in self.found(text[place:start])]
            place = end
        return found

    def sign(self, word: str) -> str:
        """The word's other name."""
        return self._signature + word

    def signed(self, text: str, own: TextSpans) -> str:
        """``text`` with its own control words by their other name."""
        pieces: list[str] = []
        place = 0
        for start, end in own:
            pieces += [text[place:start], self.sign(text[start:end])]
            place = end
        return "".join((*pieces, text[place:]))


def _means(word: str, template: str) -> bool:
    return MEANT.fullmatch(word) is not None or (TAG.fullmatch(word) is not None and word in template)


def _common(one: str, other: str) -> str:
    """What both begin with."""
    at = next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
    return one[:at]


def _any_of(words: Sequence[str]) -> str:
    """A pattern of the longest of sorted words that is there, by the letters in which they differ.

    Word after word, Gemma's thousands that begin with ``<`` would be tried at each ``<`` of a text.
    """
    common = _common(words[0], words[-1])
    rest = [word[len(common) :] for word in words]
    ends = rest[0] == ""
    branches = [_any_of([*group]) for _, group in groupby(rest[ends:], key=lambda word: word[0])]
    return re.escape(common) + (f"(?:{'|'.join([*branches, *([''] if ends else [])])})" if branches else "")


def guarded_json(data: dict[str, Any], words: ControlWords) -> dict[str, Any]:
    """A tokenizer's JSON, changed so that it knows control words by their other name alone."""

    def renamed(word: Any) -> Any:
        return words.sign(word) if isinstance(word, str) and word in words.ids else word

    model = cast("dict[str, Any]", data["model"])
    for token in data["added_tokens"]:
        token["content"] = renamed(token["content"])
    if isinstance(model["vocab"], dict):
        vocab = cast("dict[str, int]", model["vocab"])
        model["vocab"] = {renamed(word): index for word, index in vocab.items()}
    else:
        pieces = cast("list[list[Any]]", model["vocab"])
        model["vocab"] = [[renamed(word), score] for word, score in pieces]
    if "merges" in model:
        # A word that is made by merging has no token without it; nor has what would be made of it.
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        model["merges"] = [
            pair for pair in pairs if "".join(pair) not in words.ids and not words.ids.keys() & {*pair}
        ]
    if "unk_token" in model:
        model["unk_token"] = renamed(model["unk_token"])
    return data
