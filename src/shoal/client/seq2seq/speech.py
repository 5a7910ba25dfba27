"""How a model of speech is asked: the tokens that say what to do, and those that it may not say."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from shoal.errors import BadWeights, UsageError
from shoal.models.checkpoint.encoder_decoders import EncoderDecoder
from shoal.models.store.generation import read_generation_config, token_ids
from shoal.models.store.local_model import LocalModel

Task = Literal["transcribe", "translate"]


@dataclass(frozen=True, slots=True)
class SpeechSettings:
    """What a model's generation config says."""

    start: int
    languages: Mapping[str, int]
    """Their tokens by code, for example ``en``; none of a model of one language."""
    tasks: Mapping[str, int]
    no_timestamps: int | None
    suppressed: frozenset[int]
    """Tokens that are never said."""
    first_suppressed: frozenset[int]
    """Those that are not said first."""
    most: int
    """Tokens of a window's text."""
    target: int
    """The same, with those that say what to do."""

    def prompt(self, language: str | None, task: Task) -> list[int]:
        """The tokens with which the decoder begins.

        Raises:
            UsageError: the model does not know the language, or has one alone.
        """
        end = [] if self.no_timestamps is None else [self.no_timestamps]
        if not self.languages:
            if language not in (None, "en") or task != "transcribe":
                raise UsageError(
                    "the model knows one language, and writes it down", check="leave language and task out"
                )
            return [self.start, *end]
        if language is None or language not in self.languages:
            known = ", ".join(sorted(self.languages))
            raise UsageError(f"the model does not know the language {language!r:.20}: it knows {known}")
        if task not in self.tasks:
            raise UsageError(f"the model does not know how to {task}")
        return [self.start, self.languages[language], self.tasks[task], *end]


def speech_settings(local: LocalModel, both: EncoderDecoder) -> SpeechSettings:
    """What the files of a model say of how to ask it.

    Raises:
        BadWeights: they make no sense, or lack the languages of a model of several.
    """
    said, vocab = read_generation_config(local.path), local.shape.vocab_size
    languages = _tokens(said, "lang_to_id", vocab)
    if said.get("is_multilingual", bool(languages)) is not False and not languages:
        raise BadWeights(
            f"{local.path}: generation_config.json does not say the tokens of languages (lang_to_id)",
            check="fetch the model again: its makers have published this file anew",
        )
    no_timestamps = token_ids(said.get("no_timestamps_token_id"), vocab)
    longest: object = said.get("max_length")
    return SpeechSettings(
        start=both.start,
        languages={} if said.get("is_multilingual") is False else languages,
        tasks=_tokens(said, "task_to_id", vocab),
        no_timestamps=next(iter(no_timestamps), None),
        suppressed=token_ids(said.get("suppress_tokens"), vocab),
        first_suppressed=token_ids(said.get("begin_suppress_tokens"), vocab),
        most=longest if isinstance(longest, int) and longest > 0 else both.target,
        target=both.target,
    )


class Suppression:
    """Keeps an answer from some tokens: as :class:`shoal.client.sampling.Constraint` has it."""

    complete = False

    def __init__(self, never: Collection[int], not_first: Collection[int]) -> None:
        self._never = sorted(never)
        self._not_first = sorted(not_first)
        self._begun = False

    def allowed(self, vocab: int) -> npt.NDArray[np.bool_]:
        found = np.ones(vocab, np.bool_)
        found[self._never] = False
        if not self._begun:
            found[self._not_first] = False
        if not found.any():
            raise UsageError("the model's generation config forbids every token")
        return found

    def accept(self, token: int) -> None:
        self._begun = True


class OneOf:
    """Allows some tokens alone."""

    complete = False

    def __init__(self, tokens: Collection[int]) -> None:
        self._tokens = sorted(tokens)

    def allowed(self, vocab: int) -> npt.NDArray[np.bool_]:
        found = np.zeros(vocab, np.bool_)
        found[self._tokens] = True
        return found

    def accept(self, token: int) -> None:
        pass


def _tokens(said: Mapping[str, Any], name: str, vocab: int) -> dict[str, int]:
    """Tokens by what they mean, without the marks round a language's code."""
    value: object = said.get(name)
    found: dict[str, int] = {}
    for key, token in cast("dict[str, object]", value).items() if isinstance(value, dict) else ():
        if type(token) is not int or not 0 <= token < vocab:
            raise BadWeights(f"generation_config.json: {name} has {str(token)[:20]} for {key[:20]!r}")
        found[key.removeprefix("<|").removesuffix("|>")] = token
    return found
