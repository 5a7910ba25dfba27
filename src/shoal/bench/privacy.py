"""How much of a text the hidden states between a model's blocks give away: an attack on this very model.

Whoever runs a block receives what comes out of the one before it. Two attacks read the text from that:

- *Ridge regression*: from public text and the public model the attacker learns a linear map from hidden
  states back to embeddings, and takes the nearest word of the vocabulary. He needs seconds for it, once.
- *Candidate matching*: for one token after the other he runs the likeliest candidates through the first
  blocks, whose weights are public, and takes the one that gives what he has seen.

Neither needs a secret to be stolen: hidden states are no encryption. (Song and Raghunathan, "Information
Leakage in Embedding Models", 2020.)
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from shoal.bench.accuracy import shipped_text, windows_of
from shoal.config import Settings
from shoal.errors import ShoalError, UnsupportedModel
from shoal.executor.arrays import Floats, join
from shoal.executor.codecs import decode, encode
from shoal.executor.ends import EndsRunner
from shoal.executor.load import load_ends_runner, load_runner
from shoal.executor.runner import KvState, Runner, SessionRows
from shoal.models.checkpoint.checkpoint import read_encoder_decoder
from shoal.models.embedding.settings import encodes_only
from shoal.models.store.local_model import LocalModel
from shoal.models.text.codec import TextCodec
from shoal.progress import Progress
from shoal.types import Codec, Format, Span

DEPTHS = (1, 2, 4, 8)
"""Blocks that the client keeps, for each of which the attacks are run."""
WINDOW = 64
"""Tokens of a text; of its first one nothing is told, as models keep other things there."""
LEARNED = 41
"""Texts that the linear map is learnt from."""
TESTED = 7
"""Texts that are attacked."""
MATCHED = 1
"""Of these, how many also by matching candidates."""
CANDIDATES = 512
"""Words that are tried for a token: in turns by what regression says and by how common they are."""
TOGETHER = 32
"""Candidates that are run in one forward."""
ALIKE = 0.02
"""Difference of hidden states, as a part of their length, at which a candidate is taken for the token: a way
in bfloat16 changes a tenth of that, another word many times as much."""
MATCHING_S = 8.0
"""For each depth. Tokens that are not decided by then are not counted."""
RIDGE = 30.0
"""How much the linear map is held small, for standardised hidden states."""
VOCABULARY_PIECE = 8192
WIRE: Codec = "bfloat16"
"""In which the attacker gets what he sees."""

WordIds = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthLeak:
    """What can be read where the client keeps so many blocks. Shares of tokens, 0 to 1."""

    depth: int
    nearest: float
    """By the nearest word of the vocabulary alone."""
    ridge: float
    """By ridge regression."""
    found: float
    """By candidate matching, with ``CANDIDATES`` words at the most."""
    recognised: float
    """The same, when the word itself is among those that are tried: by trying all words."""
    tokens: int
    """How many were attacked by matching."""
    tries: float
    """Words that were tried for each of them."""


@dataclass(frozen=True, slots=True)
class PrivacyReport:
    """What can be read of a text at each depth of a model."""

    model: str
    format: Format
    tokens: int
    """How many were attacked by regression."""
    depths: tuple[DepthLeak, ...]
    seconds: float


class Attacker:
    """The first blocks of a model, cut at the depths that are looked at. For one thread.

    Args:
        depths: growing.
    """

    def __init__(self, model: LocalModel, format: Format, depths: Sequence[int], settings: Settings) -> None:
        self.depths = tuple(depths)
        self.ends: EndsRunner = load_ends_runner(
            model, format, threads=settings.threads, cache=settings.paths.cache
        )
        self._runners: list[Runner] = [
            load_runner(
                model,
                Span(start, end),
                format,
                kv="auto",
                threads=settings.threads,
                cache=settings.paths.cache,
            )
            for start, end in pairwise((0, *depths))
        ]
        self._pools = [runner.make_pool(TOGETHER * WINDOW) for runner in self._runners]
        self.vocab = model.shape.vocab_size

    @contextmanager
    def sessions(self, depth: int, count: int) -> Generator[list[list[KvState]]]:
        """KV for ``count`` texts, at most ``TOGETHER``, in each part of the blocks before ``depth``."""
        parts = list(zip(self._runners, self._pools, strict=True))[: self.depths.index(depth) + 1]
        held = [
            [runner.open(runner.span, pool.promise(WINDOW)) for _ in range(count)] for runner, pool in parts
        ]
        try:
            yield held
        finally:
            for states, (_, pool) in zip(held, parts, strict=True):
                for state in states:
                    state.pages.resize(0)
                    pool.forget(state.pages)

    def run(
        self, held: Sequence[Sequence[KvState]], pieces: Sequence[Sequence[int]], position: int
    ) -> list[list[Floats]]:
        """What comes out of each part for each text, ``[n, width]``, whose next tokens these are.

        Args:
            pieces: one for each of the first texts, from ``position`` on.
        """
        hidden = [self.ends.embed(piece, position) for piece in pieces]
        found: list[list[Floats]] = []
        for runner, states in zip(self._runners, held, strict=False):
            rows = [
                SessionRows(state, position, one.copy()) for state, one in zip(states, hidden, strict=False)
            ]
            hidden = [_given(out) for out in runner.forward(rows)]
            found.append(hidden)
        return found

    def embeddings(self, token_ids: Sequence[int]) -> Floats:
        """The embedding of each word, ``[n, width]``, as it is at the beginning of a text."""
        pieces = [list(token_ids[i : i + WINDOW]) for i in range(0, len(token_ids), WINDOW)]
        # Where the position is added to the word, it is taken off again.
        first = self.ends.embed([0] * min(WINDOW, len(token_ids)), 0)
        shifts = first - first[0]
        return join([self.ends.embed(piece, 0) - shifts[: len(piece)] for piece in pieces])

    def vocabulary(self) -> list[range]:
        """All words, in pieces that fit into memory."""
        whole = range(self.vocab)
        return [whole[i : i + VOCABULARY_PIECE] for i in range(0, self.vocab, VOCABULARY_PIECE)]


def measure_privacy(
    model: LocalModel, format: Format, settings: Settings, progress: Progress
) -> PrivacyReport:
    """Attack texts of the shipped book at each depth, with what is learnt from others of its texts.

    Raises:
        UnsupportedModel: the model has no block to spare, or too small a context, or has an encoder.
        BadWeights: it has no tokenizer, or cannot be loaded.
    """
    began = time.monotonic()
    if encodes_only(model) or read_encoder_decoder(model.path) is not None:
        raise UnsupportedModel(
            f"{model.name} has an encoder, and this attack is made for models that read word by word",
            check="assume that peers can read the texts: hidden states are no encryption",
        )
    depths = [depth for depth in DEPTHS if depth < model.shape.n_blocks]
    if not depths or model.shape.context < WINDOW:
        raise UnsupportedModel(
            f"{model.name} has {model.shape.n_blocks} blocks and a context of {model.shape.context} tokens: "
            f"too few to look between them"
        )
    progress(f"loading the first {depths[-1]} blocks of {model.name}", 0, 0)
    book = windows_of(TextCodec.load(model.path).encode(shipped_text()), WINDOW)
    leaks = attack(Attacker(model, format, depths, settings), book, progress)
    return PrivacyReport(model.name, format, (WINDOW - 1) * TESTED, leaks, time.monotonic() - began)


def attack(attacker: Attacker, book: Sequence[Sequence[int]], progress: Progress) -> tuple[DepthLeak, ...]:
    """Learn from texts of a book, and read others of it.

    Args:
        book: texts of ``WINDOW`` tokens. The first ``LEARNED`` teach the linear map, the next ``TESTED`` are
            attacked, and all but these tell which words are common.
    """
    texts, tested = book[: LEARNED + TESTED], book[LEARNED : LEARNED + TESTED]
    seen: list[list[Floats]] = [[] for _ in attacker.depths]
    for number, text in enumerate(texts):
        progress("running the texts", number, len(texts))
        with attacker.sessions(attacker.depths[-1], 1) as held:
            for place, [hidden] in enumerate(attacker.run(held, [text], 0)):
                seen[place].append(_received(hidden)[1:])
    progress("learning what comes out of which word", 0, 0)
    words = attacker.embeddings([token for text in texts[:LEARNED] for token in text[1:]])
    plain = [join(hidden[LEARNED:]) for hidden in seen]
    mapped = [_inverted(join(hidden[:LEARNED]), words, join(hidden[LEARNED:])) for hidden in seen]
    ranked = _nearest(attacker, [*plain, *mapped], MATCHED * (WINDOW - 1))
    common = _common([*texts[:LEARNED], *book[LEARNED + TESTED :]], attacker.vocab)
    truth = np.array([text[1:] for text in tested], np.int64).ravel()
    leaks: list[DepthLeak] = []
    for place, depth in enumerate(attacker.depths):
        progress(f"matching candidates after block {depth}", place, len(attacker.depths))
        order = ranked[len(plain) + place]
        tried = _match(attacker, depth, tested[:MATCHED], seen[place][LEARNED:], order, common)
        count = max(len(tried), 1)
        leaks.append(
            DepthLeak(
                depth=depth,
                nearest=float((ranked[place][:, 0] == truth).mean()),
                ridge=float((order[:, 0] == truth).mean()),
                found=sum(one.found for one in tried) / count,
                recognised=sum(one.recognised for one in tried) / count,
                tokens=len(tried),
                tries=sum(one.tries for one in tried) / count,
            )
        )
    return tuple(leaks)


def _given(out: Floats | ShoalError) -> Floats:
    if isinstance(out, ShoalError):
        raise out
    return out


def _common(texts: Sequence[Sequence[int]], vocab: int) -> WordIds:
    """The most common words; of those that do not occur first those with low ids, which are short mostly."""
    counts = np.bincount([token for text in texts for token in text], minlength=vocab)
    return np.argsort(-counts, kind="stable")[:CANDIDATES].astype(np.int64)


def _received(hidden: Floats) -> Floats:
    return decode(encode(hidden, WIRE), WIRE, *hidden.shape)


def _inverted(learned: Floats, words: Floats, seen: Floats) -> Floats:
    """What a linear map, learnt from ``learned`` and the words that it came from, makes of ``seen``."""
    mean, deviation = learned.mean(0), learned.std(0) + 1e-4
    x, centre = (learned - mean) / deviation, words.mean(0)
    square = (x.T @ x).astype(np.float64) + RIDGE * np.eye(x.shape[1])
    weights = np.linalg.solve(square, (x.T @ (words - centre)).astype(np.float64)).astype(np.float32)
    return (seen - mean) / deviation @ weights + centre


def _nearest(attacker: Attacker, guesses: Sequence[Floats], ranked: int) -> list[WordIds]:
    """For each row of each guess the words whose embeddings point most like it, the best first.

    Args:
        ranked: of so many rows of each guess ``CANDIDATES`` words are named; of all, the best one is.

    Returns:
        ``[rows, n]`` for each guess; after the first column 0 where they are not named.
    """
    rows = np.concatenate(guesses)
    named = np.concatenate([np.arange(len(guess)) < ranked for guess in guesses])
    best = np.full((len(rows), 1), -np.inf, np.float32)
    best_words = np.zeros((len(rows), 1), np.int64)
    scores = np.empty((int(named.sum()), 0), np.float32)
    words = np.empty((int(named.sum()), 0), np.int64)
    for piece in attacker.vocabulary():
        table = attacker.embeddings(piece)
        table /= np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
        found = rows @ table.T
        top = found.argmax(1)[:, None]
        higher = np.take_along_axis(found, top, 1) > best
        best = np.where(higher, np.take_along_axis(found, top, 1), best)
        best_words = np.where(higher, top + piece.start, best_words)
        scores = np.concatenate([scores, found[named]], 1)
        here = np.broadcast_to(np.arange(piece.start, piece.stop), (len(scores), len(piece)))
        words = np.concatenate([words, here], 1)
        if scores.shape[1] > CANDIDATES:
            kept = np.argpartition(scores, -CANDIDATES, 1)[:, -CANDIDATES:]
            scores, words = np.take_along_axis(scores, kept, 1), np.take_along_axis(words, kept, 1)
    order = np.argsort(-scores, 1)
    found_words = np.zeros((len(rows), words.shape[1]), np.int64)
    found_words[named] = np.take_along_axis(words, order, 1)
    found_words[:, :1] = best_words
    edges = np.cumsum([len(guess) for guess in guesses])[:-1]
    return np.split(found_words, edges)


@dataclass(frozen=True, slots=True)
class TriedToken:
    """What matching made of one token."""

    found: bool
    recognised: bool
    tries: int


def _match(
    attacker: Attacker,
    depth: int,
    texts: Sequence[Sequence[int]],
    seen: Sequence[Floats],
    order: WordIds,
    common: WordIds,
) -> list[TriedToken]:
    """Read texts by running candidates, each token after those before it, until the time is over.

    Args:
        order: words for each token, the likeliest first.
        common: the most common words.
    """
    until = time.monotonic() + MATCHING_S
    tried: list[TriedToken] = []
    for number, text in enumerate(texts):
        with attacker.sessions(depth, TOGETHER) as held:
            attacker.run(held, [text[:1]] * TOGETHER, 0)
            for position in range(1, WINDOW):
                if time.monotonic() > until:
                    return tried
                at = position - 1
                likely = _in_turns(order[number * (WINDOW - 1) + at], common)
                tried.append(_try(attacker, held, position, seen[number][at], likely, text[position]))
    return tried


def _in_turns(likely: WordIds, common: WordIds) -> list[int]:
    """Candidates of two orders in turns, each once."""
    both = np.stack([likely, common[: len(likely)]], 1).ravel().tolist()
    return list(dict.fromkeys(both))[:CANDIDATES]


def _try(
    attacker: Attacker,
    held: Sequence[Sequence[KvState]],
    position: int,
    target: Floats,
    likely: Sequence[int],
    truth: int,
) -> TriedToken:
    """Try candidates until one gives what was seen; at the end the token itself, whose KV is held then."""
    length = float(np.linalg.norm(target))

    def differences(words: Sequence[int]) -> list[float]:
        outs = join(attacker.run(held, [[word] for word in words], position)[-1])
        return (np.linalg.norm(outs - target, axis=1) / length).tolist()

    taken: int | None = None
    tries = 0
    for start in range(0, len(likely), TOGETHER):
        words = likely[start : start + TOGETHER]
        found = differences(words)
        tries += len(words)
        if min(found) < ALIKE:
            taken = words[found.index(min(found))]
            break
    itself = differences([truth] * TOGETHER)[0]
    return TriedToken(taken == truth, itself < ALIKE and taken in (None, truth), tries)
