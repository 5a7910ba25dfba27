"""What the gateway's benchmark counts of chats, in each dialect."""

from __future__ import annotations

import pytest

from shoal.bench.gateway import CHAT_APIS, TOKENS, Decoded, together_rate


def test_chats_that_run_one_after_the_other_are_no_faster_than_one() -> None:
    one = Decoded(11, 0.0, 1.0)
    assert together_rate([one]) == pytest.approx(10)
    assert together_rate([one, Decoded(11, 1.0, 2.0)]) == pytest.approx(21 / 2)
    assert together_rate([one, Decoded(11, 0.0, 1.0)]) == pytest.approx(21)


@pytest.mark.parametrize(
    ("dialect", "carries", "others"),
    [
        ("chat", {"choices": [{"delta": {"content": "a"}}]}, [{"choices": [{"delta": {}}]}, {"choices": []}]),
        (
            "responses",
            {"type": "response.output_text.delta", "delta": "a"},
            [{"type": "response.created"}, {"type": "response.output_text.done", "text": "a"}],
        ),
        (
            "messages",
            {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "a"}},
            [{"type": "message_start"}, {"type": "message_delta", "usage": {}}],
        ),
        (
            "ollama",
            {"message": {"content": "a"}, "done": False},
            [{"message": {"content": ""}, "done": True}],
        ),
    ],
)
def test_a_token_is_known_in_each_dialect(dialect: str, carries: dict, others: list) -> None:
    asked = CHAT_APIS[dialect]
    assert asked.has_token(carries)
    assert not any(asked.has_token(event) for event in others)
    assert str(TOKENS) in str(asked.body("hello"))
    assert "hello" in str(asked.body("hello"))
