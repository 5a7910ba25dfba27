"""Computes an answer again from its tokens, where the weights are, and compares it with its receipts.

Only where the numerics promise the same bits on every machine, row by row: there a difference is no rounding.
Either the hop that signed computed something else than its blocks of this model, or this machine does; that
its weights are the model's, the caller checks first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from shoal.client.sampling import Sampler, Sampling
from shoal.config import Settings
from shoal.errors import NotAllowed, ShoalError, StepFailed, UsageError
from shoal.executor.arrays import Floats
from shoal.executor.codecs import decode, encode
from shoal.executor.load import load_ends_runner, load_runner
from shoal.executor.runner import Runner, SessionRows
from shoal.models.store.local_model import LocalModel
from shoal.progress import Progress, silent
from shoal.trust.answer import KeptAnswer
from shoal.trust.rows import HASH, WINDOW, RowLog, row_hashes
from shoal.types import Numerics, Span

ROWS = 64
"""Rows of one forward."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What was computed here is not what the answer says."""

    hop: int | None
    """The first hop whose receipts differ; ``None`` where it is the tokens."""
    window: int | None
    token: int | None
    """The place of the first token that differs, where that is known."""
    what: str


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """What came of computing an answer again."""

    tokens: int
    """That went through all blocks, and gave what the receipts say."""
    chosen: int
    """Of the answer's tokens, how many were chosen again; 0 where nobody else could know how."""
    difference: Difference | None


def check_replayable(answer: KeptAnswer, model: LocalModel) -> None:
    """Refuse what cannot be computed again bit for bit.

    Raises:
        NotAllowed: other machines, or other company, give other bits; or blocks ran where nobody signed.
        UsageError: the model is another one.
    """
    numerics = Numerics.parse(answer.numerics)
    if not numerics.exact:
        raise NotAllowed(
            f"bits by the numerics {numerics} depend on the machine, or on what ran beside the answer: it "
            "cannot be computed again to the bit",
            check="ask again of nodes that run a Llama-like model in int8, w8a8 or int4 on the CPU",
        )
    if model.digest != answer.digest:
        raise UsageError(f"{model.name} is {model.digest}, and the answer is by {answer.digest}")
    if (answer.hops[0].start, answer.hops[-1].end) != (0, model.shape.n_blocks):
        raise NotAllowed("the client ran blocks of its own (--private-ends), for which nobody has signed")
    if answer.images:
        raise NotAllowed(
            "the answer is about images, which are not kept with it: its rows cannot be made again",
            check="check its receipts alone, which shoal verify does without computing",
        )
    if answer.width != model.shape.hidden_size or max(answer.token_ids) >= model.shape.vocab_size:
        raise UsageError(f"the answer has rows or tokens that {model.name} does not have")


def replay(
    answer: KeptAnswer, model: LocalModel, settings: Settings, progress: Progress = silent
) -> ReplayResult:
    """Compute an answer's tokens again, hop by hop, until something differs.

    Raises:
        NotAllowed, UsageError: as :func:`check_replayable`; or this machine cannot give those bits.
        ShoalError: the weights cannot be loaded, or a forward failed.
    """
    check_replayable(answer, model)
    numerics = Numerics.parse(answer.numerics)
    ends = load_ends_runner(model, numerics.format, threads=settings.threads, cache=settings.paths.cache)
    token_ids = answer.token_ids[: answer.tokens]
    rows = np.concatenate([ends.embed(token_ids[a:b], a) for a, b in _cuts(answer.tokens)])
    if (wrong := _differing_token(answer, rows)) is not None:
        return ReplayResult(0, 0, wrong)
    for index, hop in enumerate(answer.hops):
        progress(f"Computing blocks {hop.span}", index, len(answer.hops))
        rows, came = _as_sent(answer, rows)
        out = through(load_blocks(model, hop.span, numerics, settings), hop.span, rows)
        rows, went = _as_sent(answer, out)
        if (wrong := _compare(answer, index, came, went)) is not None:
            return ReplayResult(0, 0, wrong)
    chosen, wrong = _chosen_again(answer, ends.heads, rows)
    return ReplayResult(answer.tokens, chosen, wrong)


def _cuts(tokens: int) -> Iterator[tuple[int, int]]:
    return ((a, min(a + ROWS, tokens)) for a in range(0, tokens, ROWS))


def _as_sent(answer: KeptAnswer, rows: Floats) -> tuple[Floats, RowLog]:
    """What arrives of rows that are sent, and the hashes of how they travel."""
    log, arrived = RowLog(), list[Floats]()
    for a, b in _cuts(answer.tokens):
        payload = encode(rows[a:b], answer.codec)
        log.note(a, b - a, row_hashes(payload, answer.codec, b - a, answer.width))
        arrived.append(decode(payload, answer.codec, b - a, answer.width))
    return np.concatenate(arrived), log


def load_blocks(model: LocalModel, span: Span, numerics: Numerics, settings: Settings) -> Runner:
    """Blocks of a model, to compute by some numerics.

    Raises:
        NotAllowed: they promise the bits that every machine has, and this one has others.
        ShoalError: the weights cannot be loaded.
    """
    runner = load_runner(
        model,
        span,
        numerics.format,
        kv=numerics.kv,
        threads=settings.threads,
        cache=settings.paths.cache,
    )
    if numerics.exact and runner.bits != "rows":
        raise NotAllowed(
            "this machine does not compute these blocks with our kernels, so it gives other bits",
            check="build the C kernels, and compute on the CPU",
            next_command="shoal doctor",
        )
    return runner


def through(runner: Runner, span: Span, rows: Floats) -> Floats:
    """What blocks make of the rows of one session, from its first position on. Raises ShoalError."""
    state = runner.open(span, runner.make_pool(len(rows)).promise(len(rows)))
    outs: list[Floats] = []
    for a in range(0, len(rows), ROWS):
        (out,) = runner.forward([SessionRows(state, a, rows[a : a + ROWS].copy())])
        if isinstance(out, ShoalError):
            raise out
        outs.append(out.copy())
    return np.concatenate(outs)


def _differing_token(answer: KeptAnswer, rows: Floats) -> Difference | None:
    """The first token whose row is not the one that the client sent."""
    if not answer.sent:
        return None
    _, own = _as_sent(answer, rows)
    for place in range(answer.tokens):
        if own.leaf(place) != answer.sent[place * HASH : (place + 1) * HASH]:
            what = f"token {place} ({answer.token_ids[place]}) is not the one that was sent to the first hop"
            return Difference(None, place // WINDOW, place, what)
    return None


def _compare(answer: KeptAnswer, index: int, came: RowLog, went: RowLog) -> Difference | None:
    """The first window in which what a hop has signed is not what its blocks give."""
    hop = answer.hops[index]
    who = f"hop {index} ({hop.peer}, blocks {hop.span})"
    for number, one in enumerate(hop.receipts):
        at = f"at tokens {number * WINDOW} to {min((number + 1) * WINDOW, answer.tokens) - 1}"
        if came.window(number)[1] != one.came:
            what = f"{who} has signed that it was given other rows than these tokens give, {at}"
            if index and number * WINDOW < answer.hops[index - 1].entered:
                what += f", by a hop that was lost, whose place hop {index - 1} took"
            return Difference(index, number, None, what)
        if went.window(number, one.sent)[1] != one.went:
            what = f"{who} has signed other rows than its blocks of this model give, {at}"
            return Difference(index, number, None, what)
    return None


def _chosen_again(answer: KeptAnswer, heads: Any, rows: Floats) -> tuple[int, Difference | None]:
    """How many of the answer's tokens follow from the logits, and the first that does not."""
    if answer.sampling is None:
        return 0, None
    sampler = Sampler(_sampling(answer.sampling))
    first, token_ids = answer.prompt_tokens, answer.token_ids
    for place in range(first, min(answer.tokens + 1, len(token_ids))):
        (logits,) = heads([rows[place - 1 : place]])
        if isinstance(logits, ShoalError):
            raise StepFailed(logits.message)
        token = sampler.choose(logits[0], token_ids[:place])
        if token != token_ids[place]:
            what = f"token {place} is {token_ids[place]}, and the model's logits give {token}"
            return place - first, Difference(None, (place - 1) // WINDOW, place, what)
    return min(answer.tokens + 1, len(token_ids)) - first, None


def _sampling(fields: Mapping[str, Any]) -> Sampling:
    """Raises UsageError: they are no sampling."""
    try:
        bias = {int(token): float(value) for token, value in fields.get("logit_bias", {}).items()}
        changed: dict[str, Any] = {**fields, "logit_bias": bias}
        return Sampling(**changed)
    except (TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"the answer says nothing useful of how its tokens were chosen: {error}") from error
