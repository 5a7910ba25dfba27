"""Token scores in OpenAI's two shapes: chat's list of tokens, and the older lists side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shoal.client.scores import TokenScore
from shoal.models.text.codec import TextCodec

LEAST = -9999.0
"""What stands for minus infinity, which JSON cannot say."""


def chat_logprobs(codec: TextCodec, scores: Sequence[TokenScore]) -> dict[str, Any]:
    """``choices[].logprobs`` of a chat completion."""
    content = [
        {
            **_entry(codec, score.token, score.logprob),
            "top_logprobs": [_entry(codec, token, logprob) for token, logprob in score.top],
        }
        for score in scores
    ]
    return {"content": content, "refusal": None}


def text_logprobs(
    codec: TextCodec | None, scores: Sequence[tuple[int, TokenScore | None]], offset: int
) -> dict[str, Any]:
    """``choices[].logprobs`` of a text completion.

    Args:
        scores: token ids with their scores; the first token of a prompt has none.
        offset: characters before the first of these tokens.
    """
    tokens = [_text(codec, token) for token, _ in scores]
    offsets: list[int] = []
    for text in tokens:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": tokens,
        "token_logprobs": [score and max(score.logprob, LEAST) for _, score in scores],
        "top_logprobs": [score and _by_text(codec, score) for _, score in scores],
        "text_offset": offsets,
    }


def _by_text(codec: TextCodec | None, score: TokenScore) -> dict[str, float]:
    """The likeliest by their text, with the token itself. Of two with one text, the likelier is kept."""
    found: dict[str, float] = {}
    for token, logprob in (*score.top, (score.token, score.logprob)):
        text = _text(codec, token)
        found[text] = max(found.get(text, LEAST), logprob)
    return found


def _entry(codec: TextCodec, token: int, logprob: float) -> dict[str, Any]:
    return {
        "token": codec.token_text(token),
        "logprob": max(logprob, LEAST),
        "bytes": list(codec.token_bytes(token)),  # its own, also where it is a part of a character
    }


def _text(codec: TextCodec | None, token: int) -> str:
    return f"token_id:{token}" if codec is None else codec.token_text(token)
