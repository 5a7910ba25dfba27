"""Whether two models have the same tokens: what one guesses, the other can be asked about by its number."""

from __future__ import annotations

from shoal.models.store.local_model import LocalModel
from shoal.models.text.codec import TextCodec

ADDED = 0.01
"""Share of the tokens that only one of two models may have."""
SHOWN = 40
"""Characters of a token, which its model's makers chose, that are shown."""


def vocabulary_difference(
    model: LocalModel, codec: TextCodec | None, other: LocalModel, other_codec: TextCodec | None
) -> str:
    """In what the tokens of two models differ; empty where they are the same.

    Vocabularies are often padded, and models of one family differ in a few added tokens: what one of them
    does not have is never guessed, or never right. Without a tokenizer only the number of tokens is known.
    """
    if codec is None and other_codec is None:
        sizes = model.shape.vocab_size, other.shape.vocab_size
        return "" if sizes[0] == sizes[1] else f"it has {sizes[1]} tokens, not {sizes[0]}"
    if codec is None or other_codec is None:
        return "only one of both has a tokenizer"
    ours, theirs = codec.pieces(), other_codec.pieces()
    alone = ours.keys() ^ theirs.keys()
    if len(alone) > ADDED * len(ours):
        return f"{len(alone)} tokens are of one of both alone"
    differing = [number for number in ours.keys() & theirs.keys() if ours[number] != theirs[number]]
    if not differing:
        return ""
    first = min(differing)
    pieces = f"{ours[first][:SHOWN]!r} and {theirs[first][:SHOWN]!r}"
    return f"{len(differing)} tokens differ, the first is {first}: {pieces}"
