"""Examples from a JSONL file, and batches of them. Pure but for reading the file."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from shoal.errors import ShoalError, UsageError
from shoal.models.text.chat_templates import ChatMessage
from shoal.models.text.codec import TextCodec
from shoal.models.text.conversation import read_conversation
from shoal.models.text.prompt import ChatPrompt
from shoal.models.untrusted.json_lines import line_object, numbered_lines
from shoal.wire.training import MAX_SEQUENCES

_Item = TypeVar("_Item")
ROLES = ("system", "user", "assistant", "tool")
MORE = ("tool_calls", "reasoning_content")
"""What an assistant may say beside content. Only the template knows how the model writes it."""

Skipped = Callable[[Path, int, str], None]
"""Told of a line that is left out: its file, its number, and why."""


@dataclass(frozen=True, slots=True)
class Example:
    """A sequence, the end of which is to be learnt."""

    token_ids: tuple[int, ...]
    learnt: int
    """Its first token that is to be learnt, at least 1: something stands before it."""
    line: int = 0
    """Where it is in its file, from 1."""
    weights: tuple[float, ...] = ()
    """By what each learnt token's loss is multiplied, such as its advantage: what is below 0 is unlearnt.
    Empty: 1 for each.

    Raises UsageError: nothing is to be learnt, or nothing stands before it; there are not as many weights as
    tokens to be learnt, or one is NaN or infinite."""

    def __post_init__(self) -> None:
        if not 1 <= self.learnt < len(self.token_ids):
            raise UsageError(
                f"an example of {len(self.token_ids)} tokens that are to be learnt from the one at "
                f"{self.learnt} on",
                check="let a token stand before the answer, and the answer have one",
            )
        if self.weights and len(self.weights) != self.answer_tokens:
            raise UsageError(
                f"{len(self.weights)} weights for {self.answer_tokens} tokens that are to be learnt",
                check="give one for each token of the answer",
            )
        if not all(map(math.isfinite, self.weights)):
            raise UsageError("a weight is NaN or infinite", check="look for odd rewards")

    @property
    def answer_tokens(self) -> int:
        return len(self.token_ids) - self.learnt


def example_inputs(examples: Sequence[Example]) -> list[tuple[int, ...]]:
    """What runs through the model for them: all tokens but the last, which predicts nothing. Each once, where
    several examples begin alike, as short answers to one prompt do.
    """
    return list(dict.fromkeys(example.token_ids[:-1] for example in examples))


def read_examples(
    path: Path,
    codec: TextCodec,
    *,
    longest: int,
    end_token: int | None,
    cut: bool = False,
    skipped: Skipped | None = None,
) -> list[Example]:
    """The examples of a file: a conversation gives one for each of its answers.

    A line is ``{"messages": [{"role": …, "content": …}, …]}``, with ``tools`` and ``chat_template_kwargs`` as
    over HTTP, ``{"prompt": …, "completion": …}`` or ``{"text": …}``. Blocks: not on a loop.

    Args:
        longest: tokens that an example may have.
        end_token: what the model ends an answer with.
        cut: cut what is longer, at its end, instead of refusing it.
        skipped: told of lines that are left out; ``None`` refuses the file for the first of them.

    Raises:
        UsageError: the file cannot be read, has no example, or has a line that is none.
    """
    examples: list[Example] = []
    for number, raw in numbered_lines(path):
        try:
            found = [
                _fitted(tokens, learnt, number, longest, cut=cut)
                for tokens, learnt in encode_line(line_object(raw), codec, end_token)
            ]
        except ShoalError as error:
            if skipped is None:
                raise UsageError(
                    f"{path}, line {number}: {error.message}",
                    check=error.check or "correct the line, or leave such lines out with --skip-bad",
                ) from error
            skipped(path, number, error.message)
            continue
        examples += found
    if not examples:
        raise UsageError(f"{path} has no example", check="give it at least one line that is an example")
    return examples


def encode_line(
    line: Mapping[str, Any], codec: TextCodec, end_token: int | None
) -> list[tuple[list[int], int]]:
    """The sequences of a line, each with its first token that is to be learnt.

    Raises:
        UsageError: it is no example; says what is wrong.
    """
    end = [] if end_token is None else [end_token]
    match line:
        case {"messages": list(messages)}:
            chat = read_conversation(line, codec)
            return _conversation(chat, [_counts(message) for message in messages], codec, end)
        case {"prompt": str(prompt), "completion": str(completion)}:
            before = codec.encode(prompt)
            return [_learnt(before, codec.encode(completion, special=False), end)]
        case {"text": str(text)}:
            tokens = codec.encode(text)
            return [_learnt(tokens[:1], tokens[1:], end)]
        case _:
            raise UsageError(
                "it has neither messages nor prompt and completion nor text",
                check='write {"messages": [{"role": "user", "content": "…"}, …]} on each line',
            )


def _counts(message: Mapping[str, Any]) -> bool:
    """Whether an answer is to be learnt: ``weight`` as OpenAI's data for fine-tuning have it, 0 or 1."""
    weight = message.get("weight", 1)
    if isinstance(weight, bool) or weight not in (0, 1):
        raise UsageError(f"a message's weight is {weight!r:.40}, and it may be 0 or 1")
    return bool(weight)


def _conversation(
    chat: ChatPrompt, counts: Sequence[bool], codec: TextCodec, end: list[int]
) -> list[tuple[list[int], int]]:
    for message in chat.messages:
        if message["role"] not in ROLES or not isinstance(message.get("content"), str):
            raise UsageError(f"a message without a known role or without text: {message!r:.80}")
    found: list[tuple[list[int], int]] = []
    for index, message in enumerate(chat.messages):
        if message["role"] == "assistant" and index and counts[index]:
            # As when it is served: what the template makes of the turns before, and then the answer's tokens.
            before = codec.prompt(chat.messages[:index], chat.options).token_ids
            if any(message.get(name) for name in MORE):
                answer, ended = _turn(chat.messages[: index + 1], chat.options, codec)
            else:
                answer, ended = codec.encode(message["content"], special=False), []
            found.append(_learnt(before, answer, ended or end))
    if not found:
        raise UsageError("no message of the assistant's answers another, or none has weight 1")
    return found


def _turn(
    messages: Sequence[ChatMessage], options: Mapping[str, Any], codec: TextCodec
) -> tuple[list[int], list[int]]:
    """The tokens of a turn that the template writes, and the one that ends it, if it writes one."""
    text, last = codec.turn(messages, options).rstrip(), messages[-1]
    names = [call["function"]["name"] for call in last.get("tool_calls", ())]
    for said in (*names, last["content"], last.get("reasoning_content") or ""):
        if str(said).strip() not in text:
            raise UsageError(
                f"the model's chat template leaves out what the assistant says: {said!r:.80}",
                check="write it as content, in the words in which the model is to say it",
            )
    tokens = codec.encode(text, special=False)
    ends = bool(tokens) and tokens[-1] in codec.end_tokens
    return (tokens[:-1], tokens[-1:]) if ends else (tokens, [])


def _learnt(before: Sequence[int], answer: Sequence[int], end: Sequence[int]) -> tuple[list[int], int]:
    if not before or not answer:
        raise UsageError("nothing stands before what is to be learnt, or it is empty")
    return [*before, *answer, *end], len(before)


def _fitted(tokens: list[int], learnt: int, line: int, longest: int, *, cut: bool) -> Example:
    if len(tokens) > longest:
        if not cut or learnt >= longest:
            raise UsageError(
                f"an example of {len(tokens)} tokens, {learnt} of them before the answer, and {longest} are "
                "the most",
                check="shorten it, allow more with --longest, or have answers cut with --cut",
            )
        tokens = tokens[:longest]
    return Example(tuple(tokens), learnt, line)


def batches(
    examples: Sequence[Example], *, tokens: int, seed: int, epoch: int, beside: int = 0
) -> list[list[Example]]:
    """The examples of one epoch in an order of its own, put together until a batch has ``tokens`` tokens, or
    as many examples as one question may have.

    Each runs by itself all the same: no example sees another.

    Args:
        beside: what each example has beside its own tokens, such as a soft prompt's.
    """
    order = list(range(len(examples)))
    random.Random(f"{seed} {epoch}").shuffle(order)
    return packed(
        [examples[index] for index in order], lambda example: beside + len(example.token_ids), tokens
    )


def packed(items: Sequence[_Item], length: Callable[[_Item], int], tokens: int) -> list[list[_Item]]:
    """The items in their order, cut where a batch has ``tokens`` tokens or as many as one question may have.

    Args:
        length: an item's tokens. One that has more than ``tokens`` makes a batch by itself.
    """
    found: list[list[_Item]] = []
    room = 0
    for item in items:
        if not found or length(item) > room or len(found[-1]) == MAX_SEQUENCES:
            found.append([])
            room = tokens
        found[-1].append(item)
        room -= length(item)
    return found
