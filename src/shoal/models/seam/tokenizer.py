"""Tokenizers, as transformers makes them of a model's folder.

Relied on: ``AutoTokenizer.from_pretrained`` reads a folder without the network and runs no code of the
model's; what it gives encodes with or without special tokens, decodes with or without them, and names its
special tokens and its chat template. A ``PreTrainedTokenizerFast`` holds a tokenizer of the tokenizers
library.
"""

from __future__ import annotations

from shoal.models.seam.contract import expect_members, relied_on

with relied_on("tokenizers"):
    from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

    expect_members(
        PreTrainedTokenizerBase,
        "encode",
        "decode",
        "convert_ids_to_tokens",
        "save_pretrained",
        "all_special_ids",
    )

__all__ = ["AutoTokenizer", "PreTrainedTokenizerBase", "PreTrainedTokenizerFast"]
