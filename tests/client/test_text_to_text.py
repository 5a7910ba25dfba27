"""T5 over a swarm writes what it writes in transformers, whichever hop is lost on the way."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
import trio
from transformers import AutoModelForSeq2SeqLM

from shoal.client.session import Session
from shoal.errors import PromptTooLong, UsageError
from shoal.testing.checkpoints import write_checkpoint
from shoal.testing.seq2seq import write_text_to_text
from shoal.testing.swarm import memory_swarm
from shoal.testing.tee.source import attesting_on
from shoal.types import Span

from .test_attested import chip, peers_of, swarm_of

TEXT = "translate the sea to german: hello world, the sea is wide"
HOPS = [Span(0, 4), Span(4, 8), Span(8, 10), Span(10, 12)]
"""Of 6 blocks of an encoder and 6 of a decoder: three hops decode, and one is on both sides."""
TOKENS = 12


@lru_cache(1)
def whole(folder):
    return AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.inference_mode()
def expected(folder, ids, tokens=TOKENS):
    found = whole(folder).generate(input_ids=torch.tensor([ids]), max_new_tokens=tokens, do_sample=False)
    return found[0].tolist()[1:]


async def answer_of(client, folder, prompt=TEXT, **options):
    answer = client.generate(str(folder), prompt, **{"max_tokens": TOKENS, **options})
    async for _ in answer:
        pass
    return answer


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return write_text_to_text(tmp_path_factory.mktemp("t5") / "t5")


async def test_three_hops_of_a_decoder_give_the_tokens_of_transformers(tmp_path, t5, autojump_clock):
    async with memory_swarm(tmp_path, t5, HOPS) as swarm:
        answer = await answer_of(swarm.client, t5)
        # The encoder's hops take part too, and read the prompt: they come first.
        assert [stage.span for stage in answer.route] == [
            *[Span(0, 4), Span(4, 6)],
            *[Span(6, 8), Span(8, 10), Span(10, 12)],
        ]
        times = answer.hop_ms()
        assert len(times) == 5
        assert min(compute_ms for compute_ms, _ in times) > 0
        assert answer.token_ids == expected(t5, answer.prompt_token_ids)
        assert len(set(answer.token_ids)) > 2
        assert answer.text
        # Of the encoder's session nothing is left, nor of the decoder's.
        await trio.sleep(1)
        assert [node.engine.sessions for node in swarm.nodes] == [0] * 4


async def test_hops_that_are_killed_change_no_token(tmp_path, t5, autojump_clock):
    spares, lost = [Span(6, 9), Span(9, 12)], []
    async with memory_swarm(tmp_path, t5, [Span(0, 6), *spares, *spares]) as swarm:
        answer, seen = swarm.client.generate(str(t5), TEXT, max_tokens=TOKENS), 0
        async for _ in answer:
            seen += 1
            if seen in (4, 8):  # the first hop of the decoder, then the last
                peer = answer.route[1 if seen == 4 else 2].peer
                swarm.kill(next(i for i, network in enumerate(swarm.networks) if network.peer == peer))
                lost.append((peer,))
    assert [change.lost for change in answer.reroutes] == lost
    assert {change.way for change in answer.reroutes} == {"resend"}
    assert answer.token_ids == expected(t5, answer.prompt_token_ids)


async def test_a_hop_that_the_encoder_loses_is_told_with_the_answer(
    tmp_path, t5, autojump_clock, monkeypatch
):
    async with memory_swarm(tmp_path, t5, [Span(0, 6), Span(0, 6), Span(6, 12)]) as swarm:
        encode, lost = Session.encode, []

        async def lose_and_encode(session, *asked):
            lost.append(session.ring.route[0].address.peer)
            swarm.kill(next(i for i, network in enumerate(swarm.networks) if network.peer == lost[0]))
            return await encode(session, *asked)

        monkeypatch.setattr(Session, "encode", lose_and_encode)
        answer = await answer_of(swarm.client, t5)
    assert [change.lost for change in answer.reroutes] == [tuple(lost)]
    assert [stage.span for stage in answer.route] == [Span(0, 6), Span(6, 12)]
    assert lost[0] not in {stage.peer for stage in answer.route}
    assert answer.token_ids == expected(t5, answer.prompt_token_ids)


async def test_an_attested_answer_is_one_whose_encoder_is_too(tmp_path, t5):
    shown = [attesting_on(chip()) for _ in range(2)]
    async with swarm_of(tmp_path, t5, *shown, spans=[Span(0, 6), Span(6, 12)]) as swarm:
        answer = await answer_of(swarm.client, t5, list(range(40, 60)), protect="attested")
        assert answer.protection.level == "attested"
        assert dict(answer.protection.attested).keys() == peers_of(swarm)
        assert all(stage.attested for stage in answer.route)


async def test_a_route_that_has_to_be_begun_anew_is_sent_what_the_encoder_gave_again(
    tmp_path, t5, autojump_clock
):
    async with memory_swarm(tmp_path, t5, [Span(0, 6), Span(6, 12), Span(6, 9), Span(9, 12)]) as swarm:
        answer, seen = swarm.client.generate(str(t5), TEXT, max_tokens=TOKENS), 0
        async for _ in answer:
            seen += 1
            if seen == 5:
                lost = {stage.peer for stage in answer.route if stage.span.start >= 6}
                for index, network in enumerate(swarm.networks):
                    if network.peer in lost:
                        swarm.kill(index)
    assert answer.reroutes
    assert answer.token_ids == expected(t5, answer.prompt_token_ids)


async def test_chance_stop_strings_and_conversations_are_as_with_other_models(tmp_path, t5, autojump_clock):
    async with memory_swarm(tmp_path, t5, [Span(0, 12)]) as swarm:
        drawn = [await answer_of(swarm.client, t5, temperature=1.0, seed=7) for _ in range(2)]
        assert drawn[0].token_ids == drawn[1].token_ids
        by_ids = await answer_of(swarm.client, t5, drawn[0].prompt_token_ids)
        assert by_ids.token_ids == expected(t5, by_ids.prompt_token_ids)
        whole = await answer_of(swarm.client, t5)
        stopped = await answer_of(swarm.client, t5, stop=[whole.text[2:4]])
        assert (stopped.text, stopped.finish_reason) == (whole.text[:2], "stop")
        said = await answer_of(swarm.client, t5, None, messages=[{"role": "user", "content": "hello"}])
        assert said.token_ids


async def test_its_hops_sign_and_are_said_to_be_far_off_by_nobody(tmp_path, t5, autojump_clock):
    async with memory_swarm(tmp_path, t5, HOPS) as swarm:
        client = await swarm.add_client(audit_budget=6.0)
        found = (await answer_of(client, t5, protect="audited")).protection
        assert (found.level, found.audits, len(found.signed)) == ("fast", (), 3)
        assert "an encoder and a decoder" in found.faults[-1]


async def test_eight_bits_are_close(tmp_path, t5, autojump_clock):
    async with memory_swarm(tmp_path, t5, [Span(0, 12)], format="int8") as swarm:
        answer = await answer_of(swarm.client, t5, max_tokens=1)
        assert answer.token_ids == expected(t5, answer.prompt_token_ids, 1)


async def test_what_cannot_be_is_refused_before_anything_is_sent(tmp_path, t5, autojump_clock):
    async with memory_swarm(tmp_path, t5, [Span(0, 12)]) as swarm:
        client = swarm.client
        with pytest.raises(PromptTooLong, match=r"takes 192 with the answer"):
            await answer_of(client, t5, "sea " * 200)
        with pytest.raises(UsageError, match="has an encoder before a decoder"):
            async with client.session(str(t5)):
                pass
        with pytest.raises(UsageError, match="gives no embeddings"):
            await client.embed(str(t5), "hello")
        private = await swarm.add_client(private_ends="1:1")
        with pytest.raises(UsageError, match="no blocks can be kept to oneself"):
            await answer_of(private, t5)
        llama = write_checkpoint(tmp_path / "llama")
        with pytest.raises(UsageError, match="has no encoder before a decoder"):
            async with client.session(str(llama), source=[1]):
                pass
