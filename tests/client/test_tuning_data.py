"""What examples are read, and what is wrong with those that are not."""

from __future__ import annotations

import json

import pytest

from shoal.client.tuning.data import Example, batches, read_examples
from shoal.errors import UsageError
from shoal.models.text.codec import TextCodec

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
        ({"prompt": "a", "completion": 7}, "line 2: it has neither"),
        ({"prompt": "", "completion": "a"}, "line 2: nothing stands before"),
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
