"""A tokenizer together with its control words, in one process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from shoal.models.text.tokenizer.control import ControlWords, TextSpans
from shoal.models.text.tokenizer.tokenizer import ModelTokenizer


class GuardableTokenizer(ModelTokenizer, Protocol):
    """A tokenizer that can be told which control words are meant."""

    def encode_guarded(self, text: str, own: TextSpans, words: ControlWords, *, special: bool) -> list[int]:
        """Token ids of ``text``, in which only the parts ``own`` are control words."""
        ...


class Words(Protocol):
    """The control words of a tokenizer at work: a :class:`GuardedTokenizer`, here or in its process."""

    @property
    def ids(self) -> Mapping[str, int]:
        """Their tokens."""
        ...

    def are_in(self, text: str) -> bool:
        """Whether ``text`` holds one."""
        ...

    def found(self, text: str) -> list[tuple[int, int]]:
        """Where ``text`` has some."""
        ...

    def own(self, text: str, foreign: TextSpans) -> list[tuple[int, int]]:
        """Where ``text`` has some that are not touched by what is ``foreign``."""
        ...

    def encode(self, text: str, own: TextSpans, *, special: bool) -> list[int]:
        """Token ids of ``text``, in which only the parts ``own`` are control words."""
        ...


class GuardedTokenizer:
    """See :class:`Words`."""

    def __init__(self, vocabulary: GuardableTokenizer, template: str) -> None:
        self._vocabulary = vocabulary
        self._words = ControlWords(vocabulary.added, template)
        self.ids: Mapping[str, int] = self._words.ids
        self.are_in = self._words.are_in
        self.found = self._words.found
        self.own = self._words.own

    def encode(self, text: str, own: TextSpans, *, special: bool) -> list[int]:
        return self._vocabulary.encode_guarded(text, own, self._words, special=special)
