"""Answers that keep to a grammar: JSON, a JSON schema, tool calls. Which tokens may follow, llguidance says.

Grammars come from strangers (CVE-2025-48943, CVE-2025-29770): their size, the work of one step and how many
are kept are bounded. They are compiled, and masks computed, off the event loop; a mask while the step before
it is on its way round the ring.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotInTime
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import trio
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from shoal.errors import UsageError
from shoal.gateway.errors import LimitReached
from shoal.gateway.grammar.relax import UNKNOWN
from shoal.gateway.models import Servable
from shoal.models.text.codec import TextCodec
from shoal.models.untrusted import panics
from shoal.types import Digest

MAX_GRAMMAR = 128 << 10
"""Characters of a grammar, its schemas written out."""
MAX_SCHEMAS = 8 * MAX_GRAMMAR
"""Characters of all schemas of a request: of more than these nothing is tried."""
COMPILE_WITHIN_S = 5.0
CHECK_WITHIN_S = 2.0
"""Of one processor, to find out what of one request's schemas can be kept to; the rest is left out."""
CHECKED_AT_ONCE = 2
CHECKED_WITHIN_S = 30.0
"""How long a request waits until its schemas are looked at."""
MASK_WITHIN_S = 2.0
"""An ordinary mask takes a twentieth of a millisecond."""
LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,  # 20 ms
    step_lexer_fuel=200_000,  # 14 ms
    step_max_items=50_000,  # 3 ms
    max_lexer_states=20_000,  # 40 MB
    max_grammar_size=100_000,
    precompute_large_lexemes=False,
    verbose_errors=False,
)
RETRY_S = 2.0
"""When one whose schemas were not looked at may come back."""
COMPACT: Mapping[str, Any] = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One way to write a value: a small model that may write blanks writes them until it is cut off."""


Found = TypeVar("Found")


def json_rule(schema: Mapping[str, Any]) -> str:
    """What a grammar says for the JSON values that ``schema`` describes."""
    return f"%json {json.dumps({**schema, 'x-guidance': dict(COMPACT)})}"


class Grammars:
    """Makes constraints. The tokenizers, one a model, are kept; a grammar only as long as its answer."""

    def __init__(self) -> None:
        self._tokenizers: dict[Digest, LLTokenizer] = {}
        self._building = trio.Lock()
        self._threads = ThreadPoolExecutor(2, "shoal-grammar")
        self._checking = trio.CapacityLimiter(CHECKED_AT_ONCE)

    def close(self) -> None:
        """Let the threads end after what they are doing now."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def checker(self, model: Servable) -> Callable[[str], str]:
        """Tells, on one thread, why no answer of ``model`` can be held to a grammar; empty where it can.

        :data:`CHECK_WITHIN_S` after it was asked first it tells of every grammar that it was
        :data:`UNKNOWN`; what its thread does between two questions counts too.

        Raises:
            UsageError: the model's tokenizer tells no bytes.
        """
        tokenizer = await self._tokenizer(model)
        began: float | None = None

        def refusal(grammar: str) -> str:
            nonlocal began
            now = time.thread_time()  # of this thread: a busy machine relaxes nothing
            began = now if began is None else began
            return UNKNOWN if now - began > CHECK_WITHIN_S else _refusal(tokenizer, grammar)

        return refusal

    async def checked(self, check: Callable[[], Found]) -> Found:
        """What ``check`` finds out about grammars, on one of a few threads. Once begun it comes to its end.

        Raises:
            LimitReached: others are checked, and no turn came within :data:`CHECKED_WITHIN_S`.
        """
        with trio.move_on_after(CHECKED_WITHIN_S):
            return await trio.to_thread.run_sync(check, limiter=self._checking)
        raise LimitReached(
            f"the schemas of others are looked at, and no turn came within {CHECKED_WITHIN_S:.0f} s",
            retry_after_s=RETRY_S,
        )

    async def constrain(self, model: Servable, grammar: str) -> GrammarConstraint:
        """A fresh constraint for one answer.

        Raises:
            UsageError: the grammar is malformed or too complex, or the model's tokenizer tells no bytes.
        """
        tokenizer = await self._tokenizer(model)
        with trio.move_on_after(COMPILE_WITHIN_S):
            matcher = await trio.to_thread.run_sync(
                lambda: LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS), abandon_on_cancel=True
            )
            if matcher.is_error():
                raise UsageError(f"the schema or grammar cannot be used: {matcher.get_error()[:300]}")
            return GrammarConstraint(matcher, self._threads)
        raise UsageError(f"the schema or grammar took more than {COMPILE_WITHIN_S:.0f} s to compile")

    async def _tokenizer(self, model: Servable) -> LLTokenizer:
        async with self._building:
            if model.local.digest not in self._tokenizers:
                self._tokenizers[model.local.digest] = await trio.to_thread.run_sync(_read, model)
            return self._tokenizers[model.local.digest]


def _refusal(tokenizer: LLTokenizer, grammar: str) -> str:
    if len(grammar) > MAX_GRAMMAR:
        return f"{len(grammar)} characters are more than the {MAX_GRAMMAR} that are taken"
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
    if not matcher.is_error():
        matcher.compute_bitmask()
    return _reason(matcher.get_error()) if matcher.is_error() else ""


def _reason(error: str) -> str:
    """What llguidance says, without where in our grammar it says so."""
    lines = [line.strip() for line in error.splitlines()]
    told = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])
    return told.rpartition("failed to compile JSON schema: ")[2][:200]


def _read(model: Servable) -> LLTokenizer:
    """The tokenizer as grammars need it: the bytes of every token, and which of them end an answer."""
    tokens = model.codec.all_bytes() if model.codec else []
    if model.codec is None or not tokens:
        raise UsageError(f"{model.id} has no tokenizer that tells bytes, which a constrained answer needs")
    ends = sorted(model.local.end_tokens & set(range(len(tokens)))) or [0]
    with panics.as_errors(model.local.path):
        return LLTokenizer(TokenizerWrapper(_Tokens(model.codec, tokens, ends[0])), eos_token=ends)


class _Tokens:
    """A vocabulary as :class:`llguidance.TokenizerWrapper` wants it.

    llguidance could read the tokenizer's own file, but with the library that panics, and in this process.
    """

    bos_token_id = None

    def __init__(self, codec: TextCodec, tokens: list[bytes], end: int) -> None:
        self.tokens = tokens
        self.special_token_ids = sorted(codec.special_ids)
        self.eos_token_id = end
        self._codec = codec

    def __call__(self, text: str | bytes) -> list[int]:
        return self._codec.encode(text if isinstance(text, str) else text.decode(), special=False)


class GrammarConstraint:
    """Where one answer is in its grammar: a :class:`shoal.client.sampling.Constraint`."""

    def __init__(self, matcher: LLMatcher, threads: ThreadPoolExecutor) -> None:
        self._matcher = matcher
        self._threads = threads
        self._next: Future[bytes] = threads.submit(matcher.compute_bitmask)
        self._complete = False

    @property
    def complete(self) -> bool:
        return self._complete

    def allowed(self, vocab: int) -> npt.NDArray[np.bool_]:
        try:
            packed = np.frombuffer(self._next.result(MASK_WITHIN_S), np.uint8)
        except NotInTime as error:
            raise UsageError(f"the grammar took more than {MASK_WITHIN_S:.0f} s for a token") from error
        bits = np.unpackbits(packed, bitorder="little")[:vocab]
        mask = np.zeros(vocab, np.bool_)
        mask[: len(bits)] = bits
        if not mask.any():
            raise UsageError(
                f"the grammar came to no token: {self._matcher.get_error()[:300] or 'a dead end'}"
            )
        return mask

    def accept(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            raise UsageError(f"the grammar refuses token {token}: {self._matcher.get_error()[:300]}")
        self._complete = self._matcher.is_stopped()
        if not self._complete:
            self._next = self._threads.submit(self._matcher.compute_bitmask)
