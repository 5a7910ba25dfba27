"""Which samples are made next, how many at once, what prompts and files may hold. No swarm."""

from __future__ import annotations

import json
from types import SimpleNamespace

import msgspec
import pytest

from shoal.client.rollouts.pace import MOST_AT_ONCE, awaited_sessions, fitting_sessions, may_go_on
from shoal.client.rollouts.prompts import RolloutPrompt, read_prompts
from shoal.client.rollouts.run import RolloutOptions
from shoal.client.rollouts.samples import RolloutSample, SampleFile
from shoal.client.rollouts.todo import SamplesToMake
from shoal.client.sampling import Sampling, sample_seed
from shoal.errors import UsageError
from shoal.swarm.announcement import Announcement, Served
from shoal.types import Digest, ModelShape

DIGEST = "sha256:" + "a" * 64
SHAPE = ModelShape("fish", Digest(DIGEST), 6, 64, 20, 384)


def served(start, end, tokens=640, awaited=0):
    return Served("fish", DIGEST, 6, 64, 20, 384, start, end, "fp32", tokens, tokens, 0, 1.0, awaited=awaited)


def test_as_many_sessions_as_the_scarcest_blocks_have_room_for():
    serving = [served(0, 3), served(3, 6), served(0, 3)]
    assert fitting_sessions(serving, 6, 64) == 10
    assert fitting_sessions([*serving, served(3, 5)], 6, 64) == 10  # block 5 is the scarce one
    assert fitting_sessions(serving, 6, 1) == MOST_AT_ONCE
    assert fitting_sessions(serving[:1], 6, 64) == 1  # somebody may come; until then it is tried
    assert fitting_sessions([], 6, 64) == 1


def test_while_somebody_waits_the_first_sample_goes_on_alone():
    announced = [
        Announcement(peer, 1, 0.0, 60.0, (), (), served(0, 6, awaited=awaited))
        for peer, awaited in (("first", 1), ("second", 2), ("stranger", 9))
    ]
    leaves = Announcement("first", 2, 0.0, 60.0, (), (), None)
    assert awaited_sessions(announced, {"first", "second"}) == 2
    assert awaited_sessions([leaves, *announced[1:]], {"first"}) == 0
    assert awaited_sessions(announced, ()) == 0
    assert [may_go_on(place, (4, 2, 7), 0) for place in (4, 2, 7)] == [True, True, True]
    assert [may_go_on(place, (4, 2, 7), 1) for place in (4, 2, 7)] == [False, True, False]


def test_sessions_begin_with_prompts_of_their_own_and_then_help_where_most_is_left():
    prompts = [RolloutPrompt(line, (1,)) for line in (1, 2, 5)]
    todo = SamplesToMake(prompts, 3, {(1, 0), (2, 0), (2, 1), (2, 2), (5, 1)})
    first, second = todo.take(), todo.take()
    assert (first.prompt.line, second.prompt.line) == (1, 5)
    assert [first.take(), second.take()] == [1, 0]
    assert first.take() == 2
    assert todo.take() is second
    assert second.take() == 2
    assert second.take() is None
    assert not todo.left
    assert todo.take() is None
    todo.put_back(first, 2)
    assert todo.left
    assert todo.take().take() == 2


def test_each_sample_has_a_seed_of_its_own_that_any_language_can_read():
    seeds = {sample_seed(7, line, number) for line in range(1, 50) for number in range(50)}
    assert len(seeds) == 49 * 50
    assert max(seeds) < 1 << 53
    assert sample_seed(7, 1, 2) == sample_seed(7, 1, 2) != sample_seed(8, 1, 2)


def codec():
    return SimpleNamespace(
        encode=lambda text, special=True: list(text.encode()),
        prompt=lambda messages, options, pictures: SimpleNamespace(
            token_ids=[len(messages), *(len(tool["function"]["name"]) for tool in options.get("tools", ()))]
        ),
        takes_tools=True,
    )


def test_prompts_are_texts_conversations_or_tokens():
    given = [
        {"prompt": "ab", "id": "x"},
        {"messages": [{"role": "user", "content": "a"}]},
        {"token_ids": [3, 4]},
        {"messages": [{"role": "user", "content": "a"}], "tools": [{"function": {"name": "tide"}}]},
    ]
    found = read_prompts(given, codec(), SHAPE)
    assert found[:2] == [RolloutPrompt(1, (97, 98), "x"), RolloutPrompt(2, (1,))]
    assert found[2:] == [RolloutPrompt(3, (3, 4)), RolloutPrompt(4, (1, 4))]
    assert read_prompts(given[2:3], None, SHAPE) == [RolloutPrompt(1, (3, 4))]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "it is no JSON"),
        ("[]", "it is no JSON object"),
        ("{}", "neither prompt nor messages nor token_ids"),
        ('{"prompt": ""}', "it is empty"),
        ('{"prompt": "abc", "id": 3}', "its id is no string"),
        ('{"messages": [{"content": "a"}]}', "a message without a role"),
        ('{"token_ids": [1, 384]}', "384 is no token"),
        ('{"token_ids": [1, true]}', "True is no token"),
        (json.dumps({"prompt": "x" * 20}), "has 20 tokens, and fish takes 20"),
        pytest.param("x" * ((8 << 20) + 9), "it is longer than 8 MiB", id="long"),
    ],
)
def test_a_line_that_is_no_prompt_is_refused_by_its_number_or_skipped(tmp_path, line, why):
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"prompt": "good"}}\n\n{line}\n')
    with pytest.raises(UsageError, match=f"line 3: .*{why}"):
        read_prompts(path, codec(), SHAPE)
    skipped = []
    found = read_prompts(path, codec(), SHAPE, skipped=lambda *told: skipped.append(told))
    assert [prompt.line for prompt in found] == [1]
    assert [number for number, _ in skipped] == [3]
    assert why in skipped[0][1]


def test_no_prompts_at_all_and_no_tokenizer_are_told(tmp_path):
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(UsageError, match="there is no prompt"):
        read_prompts(tmp_path / "empty", codec(), SHAPE)
    with pytest.raises(UsageError, match="nowhere"):
        read_prompts(tmp_path / "nowhere", codec(), SHAPE)
    with pytest.raises(UsageError, match="fish has no tokenizer"):
        read_prompts([{"prompt": "a"}], None, SHAPE)


RUN = {"digest": DIGEST, "adapter": None, "sampling": {"temperature": 1.0}, "max_tokens": 4, "stop": []}


def a_sample(number, line=1):
    return RolloutSample(
        prompt=line,
        sample=number,
        seed=sample_seed(0, line, number),
        model="fish",
        numerics="1/fp32/f32/c",
        prompt_token_ids=[1],
        token_ids=[2],
        logprobs=[-0.5],
        text="b",
        finish_reason="length",
        **RUN,
    )


@pytest.mark.parametrize("cut", [0, 1, 70_000, -1])
def test_a_line_that_was_cut_off_is_removed_and_all_others_stay(tmp_path, cut):
    path = tmp_path / "out.jsonl"
    whole = b"".join(msgspec.json.encode(a_sample(n)) + b"\n" for n in range(3))
    path.write_bytes(whole + (whole * 200)[: cut if cut >= 0 else len(whole) // 3 - 1].replace(b"\n", b" "))
    file = SampleFile(path)
    assert file.made([RolloutPrompt(1, (1,))], RUN, 0) == {(1, 0), (1, 1), (1, 2)}
    assert path.read_bytes() == whole
    file.add([a_sample(3)])
    file.close()
    assert path.read_bytes() == whole + msgspec.json.encode(a_sample(3)) + b"\n"


def test_two_processes_do_not_write_one_file(tmp_path):
    first = SampleFile(tmp_path / "out.jsonl")
    with pytest.raises(UsageError, match="another process adds samples"):
        SampleFile(tmp_path / "out.jsonl")
    first.close()
    SampleFile(tmp_path / "out.jsonl").close()
    with pytest.raises(UsageError, match="cannot be written"):
        SampleFile(tmp_path)


@pytest.mark.parametrize(
    "given",
    [
        {"samples": 0},
        {"max_tokens": 0},
        {"at_once": 65},
        {"patience_s": -1.0},
        {"sampling": Sampling(temperature=1.0, seed=3)},
    ],
)
def test_options_that_cannot_be_are_refused_by_name(given):
    name = "seed" if "sampling" in given else next(iter(given))
    with pytest.raises(UsageError, match=name):
        RolloutOptions(**given)
