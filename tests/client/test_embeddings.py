"""Embeddings over a swarm are those of transformers, whoever else asked and whichever hop is lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trio
from transformers import AutoModel

from shoal.errors import BadWeights, PromptTooLong, UsageError
from shoal.testing.checkpoints import write_checkpoint
from shoal.testing.encoders import ENCODER_FAMILIES, surround, write_encoder, write_pooling
from shoal.testing.swarm import memory_swarm

from .conftest import THIRDS

TEXTS = ["hello world", "the sea is wide and hello is a word that says little " * 2, "w"]
CLOSE = {"atol": 1e-6, "rtol": 0}


@torch.inference_mode()
def whole(folder, batch):
    """Last hidden states by transformers alone, all texts in one padded batch."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False).eval()
    longest = max(map(len, batch))
    padding = model.config.pad_token_id or 0
    ids = torch.tensor([ids + [padding] * (longest - len(ids)) for ids in batch])
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in batch])
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return [rows[: len(ids)].numpy() for rows, ids in zip(hidden, batch, strict=True)]


def plain(folder, batch):
    """The same of a class that takes no such argument."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return [model(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy() for ids in batch]


async def ids_of(swarm, texts=TEXTS):
    codec = await swarm.client.codec(swarm.model)
    return [codec.encode(text) for text in texts]


@pytest.mark.parametrize("family", sorted(ENCODER_FAMILIES))
async def test_every_family_gives_what_transformers_gives(tmp_path, family, autojump_clock):
    folder = write_encoder(tmp_path / family, family)
    async with memory_swarm(tmp_path / "home", folder, THIRDS) as swarm:
        batch = await ids_of(swarm)
        assert batch[0][0] == 1
        assert batch[0][-1] == 2
        found = await swarm.client.embed(str(folder), TEXTS)
    assert found.tokens == tuple(map(len, batch))
    expected = np.stack([rows.mean(0) for rows in plain(folder, batch)])
    np.testing.assert_allclose(found.vectors, expected, **CLOSE)
