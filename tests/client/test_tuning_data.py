"""What examples are read, and what is wrong with those that are not."""

from __future__ import annotations

import json

import pytest

from shoal.client.tuning.data import Example, batches, encode_line, read_examples
from shoal.errors import UsageError
from shoal.gateway.api.chat import for_templates
from shoal.gateway.markup.tools import Calling
from shoal.gateway.schema.chat import ChatRequest
from shoal.models.text.codec import TextCodec
from shoal.models.text.tokenizer.apart import ApartTokenizer
from shoal.models.untrusted import json_lines

END = 2


@pytest.fixture(scope="module")
def codec(checkpoint):
    return TextCodec.load(checkpoint)


@pytest.fixture
def read(tmp_path, codec):
    def run(*lines, **options):
        path = tmp_path / "data.jsonl"
        path.write_bytes(
            b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
        )
        return read_examples(path, codec, **{"longest": 200, "end_token": END} | options)

    return run


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_each_answer_of_a_conversation_is_learnt_after_what_stood_before_it(read, codec):
    turns = [user("hello"), assistant("you"), user("and"), assistant("me")]
    first, second = read({"messages": turns})
    before = codec.prompt(turns[:1]).token_ids
    assert first == Example((*before, *codec.encode("you", special=False), END), len(before), 1)
    before = codec.prompt(turns[:3]).token_ids
    assert second == Example((*before, *codec.encode("me", special=False), END), len(before), 1)
    assert second.answer_tokens == len(codec.encode("me", special=False)) + 1


def test_an_answer_of_weight_0_stands_before_the_next_one_and_is_not_learnt(read):
    turns = [user("hello"), assistant("you") | {"weight": 0}, user("and"), assistant("me") | {"weight": 1}]
    assert read({"messages": turns}) == read({"messages": [user("hello"), assistant("you"), *turns[2:]]})[1:]


TOOLS = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}{% for m in messages %}{{ m.role }}: "
    "{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>"
    "{% endfor %}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% if calm %}calm {% endif %}{% endif %}"
)
"""A template that knows of functions, calls, thoughts, and one word more."""
FUNCTION = {"name": "tide", "description": "High tide.", "parameters": {"type": "object", "properties": {}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "tide", "arguments": '{"at": "Brest"}'}}


def called(*calls):
    return {"role": "assistant", "content": None, "tool_calls": list(calls)}


@pytest.fixture(scope="module")
def calling(checkpoint):
    tokenizer = ApartTokenizer(checkpoint)
    return TextCodec(tokenizer, {"default": TOOLS}, tokenizer.words)


def test_a_call_is_learnt_as_the_template_writes_it_and_functions_are_shown_as_when_it_is_served(calling):
    turns = [user("when?"), called(CALL), {"role": "tool", "content": "at 5"}, assistant("at five")]
    tools = [{"type": "function", "function": FUNCTION | {"strict": True}}]
    first, second = encode_line({"messages": turns, "tools": tools}, calling, END)
    request = ChatRequest.model_validate({"model": "fish", "messages": turns, "tools": tools})
    served = for_templates(request.messages)
    options = {"tools": Calling(tuple(tool.function for tool in request.tools)).declared()}
    for (tokens, learnt), before, said in (
        (first, served[:1], '<call>tide {"at": "Brest"}</call>'),
        (second, served[:3], "at five"),
    ):
        assert tokens[:learnt] == calling.prompt(before, options).token_ids
        assert tokens[learnt:] == [*calling.encode(said, special=False), END]


def test_thoughts_and_words_for_the_template_are_learnt_where_it_knows_them(calling):
    turns = [user("hello"), assistant("you") | {"reasoning_content": "polite"}]
    ((tokens, learnt),) = encode_line({"messages": turns}, calling, END)
    assert tokens[learnt:] == [*calling.encode("(polite)you", special=False), END]
    ((tokens, learnt),) = encode_line(
        {"messages": [user("hello"), assistant("you")], "chat_template_kwargs": {"calm": True}}, calling, END
    )
    assert tokens[:learnt] == calling.prompt([user("hello")], {"calm": True}).token_ids


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"tools": [{"name": "tide"}]}, "a tool that is no"),
        ({"tools": "tide"}, "a tool that is no"),
        ({"enable_thinking": False}, "enable_thinking beside the messages is not read"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs may be an object without"),
        ({"messages": [user("a"), called({"name": "f"})]}, "a call that is no"),
        ({"messages": [user("a"), assistant("b") | {"function_call": CALL}]}, "has function_call"),
        (
            {"messages": [user("a"), called(CALL)], "chat_template_kwargs": {"calm": True}},
            "does not write the assistant's turn behind",
        ),
        ({"messages": [user("a") | {"tool_calls": [CALL]}, assistant("b")]}, "no list of an assistant's"),
    ],
)
def test_what_the_template_would_not_be_shown_is_refused(calling, line, says):
    with pytest.raises(UsageError, match=says):
        encode_line({"messages": [user("hello"), assistant("you")]} | line, calling, END)


def test_a_template_that_knows_no_functions_or_leaves_out_what_is_said_is_told(codec):
    with pytest.raises(UsageError, match="the model's chat template knows none"):
        encode_line({"messages": [user("when?"), called(CALL)]}, codec, END)
    with pytest.raises(UsageError, match="leaves out what the assistant says: 'polite'"):
        encode_line({"messages": [user("a"), assistant("b") | {"reasoning_content": "polite"}]}, codec, END)


def test_a_completion_is_learnt_after_its_prompt_and_a_text_after_its_first_token(read, codec):
    one, other = read({"prompt": "a b", "completion": " c"}, b"", {"text": "abc"})
    assert one.token_ids == (*codec.encode("a b"), *codec.encode(" c", special=False), END)
    assert one.learnt == len(codec.encode("a b"))
    assert (other.learnt, other.line) == (1, 3)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{", "line 2: it is no JSON"),
        (b"[1]", "line 2: it is no JSON object"),
        (b"\xff\xfe\xfa", "line 2: it is no JSON"),
        ({"question": "a"}, "line 2: it has neither messages nor prompt"),
        ({"messages": []}, "line 2: no message of the assistant's answers another"),
        ({"messages": [user("a")]}, "line 2: no message of the assistant's"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "line 2: a message without a known role"),
        ({"messages": [user("a"), {"role": "assistant", "content": None}]}, "line 2: a message without"),
        ({"messages": [user("a"), assistant("b") | {"weight": 0}]}, "line 2: no message .* has weight 1"),
        ({"messages": [user("a"), assistant("b") | {"weight": 0.5}]}, "line 2: a message's weight is 0.5"),
        ({"messages": [user("a"), assistant("b") | {"weight": True}]}, "line 2: a message's weight is True"),
        ({"prompt": "a", "completion": 7}, "line 2: it has neither"),
        ({"prompt": "", "completion": "a"}, "line 2: nothing stands before"),
        ({"prompt": "a", "completion": ""}, "line 2: nothing stands before .* or it is empty"),
        ({"text": ""}, "line 2: nothing stands before .* or it is empty"),
        ({"messages": [user("a"), assistant("")]}, "line 2: nothing stands before .* or it is empty"),
        ({"text": "long " * 200}, r"line 2: an example of \d+ tokens, 1 of them before the answer, and 200"),
    ],
)
def test_a_line_that_is_no_example_is_refused_by_its_number_or_skipped_if_asked(read, line, says):
    good = {"prompt": "a", "completion": "b"}
    with pytest.raises(UsageError, match=says):
        read(good, line, good)
    skipped = []
    assert len(read(good, line, good, skipped=lambda *what: skipped.append(what))) == 2
    ((path, number, why),) = skipped
    assert path.exists()
    assert number == 2
    assert why.split(":")[0][:20] in says or why


@pytest.mark.parametrize("learnt", [-1, 0, 3, 4])
def test_an_example_has_an_answer_and_something_before_it(learnt):
    assert Example((1, 2, 3), 2).answer_tokens == 1
    with pytest.raises(UsageError, match=f"of 3 tokens that are to be learnt from the one at {learnt} on"):
        Example((1, 2, 3), learnt)


@pytest.mark.parametrize("filling", [b"x", b" "])
def test_a_line_that_is_too_long_is_refused_or_left_out_by_its_number_and_the_next_is_read(
    read, monkeypatch, filling
):
    monkeypatch.setattr(json_lines, "MAX_LINE", 64)
    good = {"prompt": "a", "completion": "b"}
    fits = json.dumps(good).encode().ljust(63)
    lines = (fits, b'{"text": "' + filling * 300 + b'"}', good, filling * 500)
    with pytest.raises(UsageError, match="line 2: it is longer than"):
        read(*lines)
    skipped = []
    found = read(*lines, skipped=lambda path, number, why: skipped.append((number, why)))
    assert [example.line for example in found] == [1, 3]
    assert [number for number, why in skipped if "it is longer than" in why] == [2, 4]
    assert len(skipped) == 2


def test_longer_answers_are_cut_only_when_asked_and_prompts_never(read):
    (found,) = read({"text": "long " * 200}, cut=True, longest=50)
    assert len(found.token_ids) == 50
    with pytest.raises(UsageError, match="before the answer, and 50 are the most"):
        read({"prompt": "long " * 200, "completion": "a"}, cut=True, longest=50)


def test_a_file_that_is_not_there_or_empty_is_told(read, tmp_path, codec):
    with pytest.raises(UsageError, match="has no example"):
        read(b"")
    with pytest.raises(UsageError, match=r"No such file.*|check"):
        read_examples(tmp_path / "nowhere", codec, longest=10, end_token=None)


def test_batches_have_every_example_once_in_an_order_of_their_epoch():
    examples = [Example(tuple(range(n)), 1) for n in (10, 30, 5, 50, 20, 7)]
    first, again, other = (batches(examples, tokens=60, seed=1, epoch=epoch) for epoch in (0, 0, 1))
    assert first == again != other
    for made in (first, other):
        assert sorted(len(e.token_ids) for batch in made for e in batch) == [5, 7, 10, 20, 30, 50]
        assert all(sum(len(e.token_ids) for e in batch) <= 60 for batch in made)
