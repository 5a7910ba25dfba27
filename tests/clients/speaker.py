"""A tiny model that says one text, whatever it is asked, and ends; held to a grammar it ends soon.

Programs of others expect sense of a model, and random weights have none. These are made so that the likeliest
token follows from the last one alone: nothing is learnt, and nothing depends on chance.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch
from anyio.from_thread import start_blocking_portal
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from shoal.testing.checkpoints import VOCAB, write_checkpoint
from shoal.types import Span
from tests.gateway.conftest import Served, served

BLOCKS = 2
WORD = "你こ"
"""What every string holds whose value is free."""
SAID, WORD_TOKEN = VOCAB, VOCAB + 1
"""The tokens that are the whole text, and that word."""
ASKED = "\u0120"
"""A space: with it the template's prompt for an answer ends."""
ENDS_WITH = {"</s>": 0.95, '"': 0.9, "}": 0.85, "]": 0.8, "3": 0.75, ",": 0.7, "t": 0.65}
"""How gladly each is said where the text cannot be: what ends a string, an object, a list or a number."""


def write_speaker(folder: Path, says: str, **changes: object) -> Path:
    """Write the checkpoint of a model that says ``says``.

    Args:
        changes: fields of its config to set.
    """
    write_checkpoint(folder, "llama_untied", num_hidden_layers=BLOCKS, vocab_size=VOCAB + 8, **changes)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in (says, WORD)])
    tokenizer.save_pretrained(folder)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    path = folder / "model.safetensors"
    weights = load_file(path)
    for name, tensor in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor.zero_()  # no block adds anything: what comes to the head is the last token's embedding
        elif name.endswith("norm.weight"):
            tensor.fill_(1.0)
    embedding, head = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    embedding.copy_(torch.nn.functional.normalize(embedding))
    embedding[:, 0] = 1.0  # the same of all tokens: by it the head prefers some, whatever was last
    head.zero_()
    head[SAID, 1:] = embedding[vocabulary[ASKED], 1:]
    head[WORD_TOKEN, 1:] = embedding[vocabulary['"'], 1:]
    for token, gladly in ENDS_WITH.items():
        head[vocabulary[token], 0] = gladly
    save_file(weights, path, {"format": "pt"})
    return folder


@contextmanager
def speaking(folder: Path, says: str) -> Generator[Served]:
    """A gateway in a thread of its own before one node in memory that serves such a model."""
    checkpoint = write_speaker(folder / "speaker", says, max_position_embeddings=32768)
    node = served(folder / "home", checkpoint, [Span(0, BLOCKS)], nodes={"format": "int8"})
    with start_blocking_portal("trio") as portal, portal.wrap_async_context_manager(node) as found:
        yield found
