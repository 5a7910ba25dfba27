"""Embeddings over a swarm are those of transformers, whoever else asked and whichever hop is lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModel

from shoal.client.embeddings import embed_tokens, text_tokens
from shoal.errors import BadWeights, PromptTooLong, UsageError
from shoal.testing.checkpoints import write_checkpoint
from shoal.testing.encoders import surround, write_encoder, write_pooling
from shoal.testing.swarm import memory_swarm
from shoal.types import Span

from .conftest import THIRDS

TEXTS = ["hello world", "the sea is wide and hello is a word that says little", "w", "", "hello"]
CLOSE = {"atol": 1e-6, "rtol": 0}


@torch.inference_mode()
def hidden_states(folder, batch, *, padding="right"):
    """Last hidden states of each text by transformers alone, all of them in one padded batch."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    longest = max(map(len, batch))
    fill = torch.nn.functional.pad
    sides = [(longest - len(ids), 0) if padding == "left" else (0, longest - len(ids)) for ids in batch]
    pairs = list(zip(batch, sides, strict=True))
    ids = torch.stack([fill(torch.tensor(ids), side) for ids, side in pairs])
    mask = torch.stack([fill(torch.ones(len(ids), dtype=torch.long), side) for ids, side in pairs])
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return [h[m.bool()].numpy() for h, m in zip(hidden, mask, strict=True)]


def of_length_one(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = write_encoder(tmp_path_factory.mktemp("bert") / "bert")
    write_pooling(folder, "mean_tokens", normalize=True, max_seq_length=100)
    return folder


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    """As Qwen3-Embedding is published: the last token's states, of tensors without a head."""
    folder = tmp_path_factory.mktemp("qwen3") / "qwen3"
    write_checkpoint(folder, "qwen3", tie_word_embeddings=True)
    AutoModel.from_pretrained(folder, dtype=torch.float32).save_pretrained(folder)
    surround(folder, before="")
    write_pooling(folder, "lasttoken", normalize=True)
    return folder


async def ids_of(swarm, texts=TEXTS):
    codec = await swarm.client.codec(swarm.model)
    return [codec.encode(text) for text in texts]


async def test_an_encoder_over_three_hops_gives_what_transformers_gives(tmp_path, bert, autojump_clock):
    async with memory_swarm(tmp_path, bert, THIRDS) as swarm:
        batch = await ids_of(swarm)
        assert (batch[0][0], batch[0][-1]) == (1, 2)
        found = await swarm.client.embed(str(bert), TEXTS)
        by_ids = await swarm.client.embed(str(bert), batch)
        alone = await swarm.client.embed(str(bert), TEXTS[1])
        shorter = await swarm.client.embed(str(bert), TEXTS, dimensions=8)
        for node in swarm.nodes:
            await node.server.wait_idle()
            assert node.engine.tokens_free == node.engine.tokens
    assert found.tokens == tuple(map(len, batch))
    expected = np.stack([rows.mean(0) for rows in hidden_states(bert, batch)])
    np.testing.assert_allclose(found.vectors, of_length_one(expected), **CLOSE)
    assert np.array_equal(by_ids.vectors, found.vectors)
    assert np.array_equal(alone.vectors[0], found.vectors[1])  # not a bit depends on what is asked beside it
    np.testing.assert_allclose(shorter.vectors, of_length_one(expected[:, :8]), **CLOSE)


async def test_a_decoder_over_three_hops_gives_what_transformers_gives(tmp_path, qwen3, autojump_clock):
    async with memory_swarm(tmp_path, qwen3, THIRDS) as swarm:
        texts = [text for text in TEXTS if text]
        batch = await ids_of(swarm, texts)
        assert batch[0][-1] == 2
        found = await swarm.client.embed(str(qwen3), texts)
        alone = await swarm.client.embed(str(qwen3), texts[1])
    expected = np.stack([rows[-1] for rows in hidden_states(qwen3, batch, padding="left")])
    np.testing.assert_allclose(found.vectors, of_length_one(expected), **CLOSE)
    assert np.array_equal(alone.vectors[0], found.vectors[1])


async def test_a_decoder_may_give_the_mean_of_all_tokens_also_on_the_kernels(tmp_path, autojump_clock):
    folder = write_checkpoint(tmp_path / "llama")
    write_pooling(folder, "mean_tokens")
    spans = [Span(0, 3), Span(3, 6)]
    async with memory_swarm(tmp_path / "home", folder, spans, format="int8", wire="float32") as swarm:
        assert {node.engine.capabilities.batch for node in swarm.nodes} == {True}
        batch = await ids_of(swarm, TEXTS[:3])
        found = await swarm.client.embed(str(folder), TEXTS[:3])
        alone = await swarm.client.embed(str(folder), TEXTS[1])
    expected = np.stack([rows.mean(0) for rows in hidden_states(folder, batch)])
    cosines = (of_length_one(found.vectors) * of_length_one(expected)).sum(1)
    assert cosines.min() > 0.999
    assert np.array_equal(alone.vectors[0], found.vectors[1])


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
async def test_a_hop_that_is_lost_amid_the_texts_changes_nothing(tmp_path, kind, request, autojump_clock):
    folder = request.getfixturevalue(kind)
    texts = [f"hello number {n} of the sea" for n in range(12)]
    async with memory_swarm(tmp_path, folder, [*THIRDS, Span(2, 3)]) as swarm:
        undisturbed = await swarm.client.embed(str(folder), texts)
        seen, killed = [], []

        def kill(session):
            # Of the two nodes of block 2 the one that this session uses, which takes its next text at once.
            seen.append(session)
            if len(seen) == 2:
                peer = session.ring.route[1].address.peer
                swarm.kill(next(i for i, network in enumerate(swarm.networks) if network.peer == peer))
                killed.append(peer)

        local = await swarm.client.resolve(str(folder))
        settings = await swarm.client.embedding(local)
        ids, opener = await ids_of(swarm, texts), swarm.client.opener(str(folder))
        vectors = await embed_tokens(opener, ids, settings, follow=kill)
    assert seen[1].reroutes[0].lost == tuple(killed)
    assert np.array_equal(vectors, undisturbed.vectors)


async def test_the_first_and_the_last_blocks_may_stay_on_the_clients_machine(tmp_path, bert, autojump_clock):
    async with memory_swarm(tmp_path, bert, [Span(0, 6)]) as swarm:
        expected = await swarm.client.embed(str(bert), TEXTS)
        client = await swarm.add_client(private_ends="2:1")
        assert np.array_equal((await client.embed(str(bert), TEXTS)).vectors, expected.vectors)


async def test_an_encoder_in_eight_bits_is_close(tmp_path, bert, autojump_clock):
    async with memory_swarm(tmp_path, bert, [Span(0, 6)], format="int8") as swarm:
        batch = await ids_of(swarm)
        found = await swarm.client.embed(str(bert), TEXTS)
    expected = of_length_one(np.stack([rows.mean(0) for rows in hidden_states(bert, batch)]))
    assert (found.vectors * expected).sum(1).min() > 0.99


async def test_what_cannot_be_embedded_is_refused_before_anything_is_sent(tmp_path, bert, autojump_clock):
    name = str(bert)
    async with memory_swarm(tmp_path, bert, [Span(0, 6)]) as swarm:
        client, long = swarm.client, "sea " * 60
        with pytest.raises(PromptTooLong, match="length is 100 tokens, and text 2 has"):
            await client.embed(name, ["hello", long])
        cut = await client.embed(name, ["hello", long], truncate=True)
        (ids,) = await ids_of(swarm, [long])
        assert cut.tokens[1] == 100
        by_ids = await client.embed(name, [[*ids[:99], 2]])
        assert np.array_equal(cut.vectors[1], by_ids.vectors[0])
        for texts, said in (([], "nothing"), ([[]], "empty"), (["a", [1]], "several kinds"), ([300], "300")):
            with pytest.raises(UsageError, match=said):
                await client.embed(name, texts)
        for dimensions in (0, 65):
            with pytest.raises(UsageError, match=r"1\.\.64"):
                await client.embed(name, "hello", dimensions=dimensions)
        with pytest.raises(UsageError, match="generates no text"):
            async for _ in client.generate(name, "hello"):
                pass


@pytest.mark.parametrize("places", [1, 64])
async def test_texts_of_one_request_go_round_at_once_where_there_is_room(
    tmp_path, bert, places, autojump_clock
):
    most = 0
    async with memory_swarm(tmp_path, bert, THIRDS, max_sessions=places) as swarm:

        def look(_):
            nonlocal most
            most = max(most, *(node.server.sessions for node in swarm.nodes))

        local = await swarm.client.resolve(str(bert))
        settings, ids = await swarm.client.embedding(local), await ids_of(swarm)
        vectors = await embed_tokens(swarm.client.opener(str(bert)), ids, settings, follow=look)
    assert len(vectors) == len(TEXTS)
    assert (most == 1) == (places == 1)


async def test_a_model_without_a_tokenizer_takes_token_ids_alone(tmp_path, bert, autojump_clock):
    async with memory_swarm(tmp_path, bert, [Span(0, 6)]) as swarm:
        local = await swarm.client.resolve(str(bert))
        settings = await swarm.client.embedding(local)
    assert text_tokens(local, None, settings, [[5, 6]]) == [[5, 6]]
    with pytest.raises(BadWeights, match="no tokenizer"):
        text_tokens(local, None, settings, ["hello"])
