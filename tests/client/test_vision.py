"""Models that look at pictures, over a swarm: the tokens of transformers, whichever hop is lost."""

from __future__ import annotations

import pytest

from shoal.errors import UsageError
from shoal.testing.checkpoints import write_checkpoint
from shoal.testing.seeing import ROW, SEEING, picture, whole_answer, write_seeing
from shoal.testing.swarm import memory_swarm
from shoal.types import Span

HALVES = [Span(0, 3), Span(3, 6)]
TOKENS = 12
ASKED = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is this?"}]}]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    root = tmp_path_factory.mktemp("seeing")
    return lambda kind: root / kind if (root / kind).exists() else write_seeing(root / kind, kind)


async def answer_of(client, folder, images, messages=ASKED, **options):
    answer = client.generate(
        str(folder), messages=messages, images=images, **{"max_tokens": TOKENS, **options}
    )
    async for _ in answer:
        pass
    return answer


@pytest.mark.parametrize("kind", SEEING)
async def test_two_hops_give_the_tokens_of_the_whole_model(tmp_path, folder_of, kind, autojump_clock):
    folder = folder_of(kind)
    async with memory_swarm(tmp_path, folder, HALVES) as swarm:
        one, other = [await answer_of(swarm.client, folder, [picture(seed)]) for seed in (1, 2)]
    for seed, answer in ((1, one), (2, other)):
        assert answer.token_ids == whole_answer(folder, answer.prompt_token_ids, [picture(seed)], TOKENS)
    assert one.prompt_token_ids == other.prompt_token_ids
    assert one.token_ids != other.token_ids  # the pictures are looked at


@pytest.mark.parametrize("kind", ["llava", "gemma3"])
@pytest.mark.parametrize("place", [0, 1])
async def test_a_hop_that_is_killed_changes_no_token(tmp_path, folder_of, kind, place, autojump_clock):
    folder, images = folder_of(kind), [picture(3), picture(4)]
    said = [ASKED[0], {"role": "assistant", "content": "a sea"}, ASKED[0]]
    async with memory_swarm(tmp_path, folder, [*HALVES, *HALVES]) as swarm:
        answer = swarm.client.generate(str(folder), messages=said, images=images, max_tokens=TOKENS)
        seen = 0
        async for _ in answer:
            seen += 1
            if seen == 5:
                peer = answer.route[place].peer
                swarm.kill(next(i for i, network in enumerate(swarm.networks) if network.peer == peer))
    assert len(answer.reroutes) == 1
    assert answer.token_ids == whole_answer(folder, answer.prompt_token_ids, images, TOKENS)


async def test_pieces_of_a_prompt_cut_no_picture_whose_rows_see_each_other(
    tmp_path, folder_of, autojump_clock
):
    folder = folder_of("gemma3")
    async with memory_swarm(tmp_path, folder, HALVES, prefill_chunk=3) as swarm:
        answer = await answer_of(swarm.client, folder, [picture(5)])
    assert answer.prompt_token_ids.count(ROW) == 4
    assert answer.token_ids == whole_answer(folder, answer.prompt_token_ids, [picture(5)], TOKENS)


async def test_the_client_may_run_the_first_and_last_blocks_itself(tmp_path, folder_of, autojump_clock):
    folder = folder_of("gemma3")
    async with memory_swarm(tmp_path, folder, [Span(0, 6)], private_ends="2:1") as swarm:
        answer = await answer_of(swarm.client, folder, [picture(6)])
    assert answer.token_ids == whole_answer(folder, answer.prompt_token_ids, [picture(6)], TOKENS)


async def test_a_model_without_a_tower_is_shown_nothing(tmp_path, autojump_clock):
    folder = write_checkpoint(tmp_path / "llama")
    async with memory_swarm(tmp_path / "home", folder, HALVES) as swarm:
        with pytest.raises(UsageError, match="takes no images"):
            await answer_of(swarm.client, folder, [picture()])
