"""One way from what a caller gives to token ids: a text as it is, a conversation by the chat template."""

from __future__ import annotations

import pytest

from shoal.errors import UsageError
from shoal.models.text.prompt import ChatPrompt, encode_prompt

from .test_chat_templates import CHATML, SPOKEN, START, codec


def test_a_text_is_encoded_as_it_is() -> None:
    made = encode_prompt(codec(CHATML), "hello")
    assert (made.text, made.token_ids) == ("hello", codec().encode("hello"))


def test_a_conversation_goes_through_the_template() -> None:
    made = encode_prompt(codec(CHATML), ChatPrompt(SPOKEN))
    assert made == codec(CHATML).prompt(SPOKEN)
    assert made.text.startswith(START)


def test_what_a_template_may_look_at_comes_with_the_conversation() -> None:
    chat = codec("{{ messages[0].content }}{% if enable_thinking %} well{% endif %}")
    assert encode_prompt(chat, ChatPrompt(SPOKEN[1:], {"enable_thinking": True})).text == "hello well"


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (None, ""),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", ""),
        ("{% for m in messages %}{{ m.content | trim }}{% endfor %} <think>", " <think>"),
        ("<think>{% for m in messages %}{{ m.content }}!{% endfor %}", "!"),
        ("{{ messages[0].content.encode() and messages[0].content }}", ""),
    ],
)
def test_the_end_that_is_the_templates_own_is_nobody_elses(template: str | None, end: str) -> None:
    chat = codec(template) if template else codec()
    made = encode_prompt(chat, ChatPrompt([{"role": "user", "content": "I <think>"}]))
    assert (made.own_end, "I <think>" in made.text) == (end, True)


@pytest.mark.parametrize("word", ["self", "answer", "options", "args", "kwargs", "check", "given"])
def test_whatever_its_words_are_called_the_template_alone_reads_them(word: str) -> None:
    chat = codec("{{ messages[0].content }}{% if add_generation_prompt %} go{% endif %}")
    assert encode_prompt(chat, ChatPrompt(SPOKEN[1:], {word: False})).text == "hello go"


def test_what_the_model_says_itself_is_not_set_by_others() -> None:
    with pytest.raises(UsageError, match="add_generation_prompt is the model's own"):
        encode_prompt(codec(CHATML), ChatPrompt(SPOKEN, {"add_generation_prompt": False}))


def test_a_conversation_without_messages_is_refused() -> None:
    with pytest.raises(UsageError, match="no messages"):
        encode_prompt(codec(CHATML), ChatPrompt([]))
