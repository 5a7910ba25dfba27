"""Tokenizers are read from a folder, offline; what they give and take."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.models.seam.tokenizer import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from shoal.testing.checkpoints import write_checkpoint


@pytest.fixture
def tokenizer(tmp_path: Path) -> PreTrainedTokenizerBase:
    folder = write_checkpoint(tmp_path / "model")
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def test_a_folders_tokenizer_is_one_of_the_tokenizers_library(tokenizer: PreTrainedTokenizerBase) -> None:
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert tokenizer.backend_tokenizer.get_vocab_size() == len(tokenizer)


def test_text_becomes_ids_and_text_again(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer.encode("Name three fish.", add_special_tokens=False)
    assert isinstance(ids, list) and all(isinstance(token, int) for token in ids)
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert text == "Name three fish."


def test_special_tokens_are_named_and_left_out_when_asked(tokenizer: PreTrainedTokenizerBase) -> None:
    special = set(tokenizer.all_special_ids)
    assert special and set(tokenizer.special_tokens_map) <= {
        "bos_token",
        "eos_token",
        "pad_token",
        "unk_token",
    }
    token = next(iter(special))
    assert tokenizer.decode([token], skip_special_tokens=True) == ""
    assert tokenizer.decode([token]) == str(tokenizer.convert_ids_to_tokens(token))


def test_the_chat_template_is_text(tokenizer: PreTrainedTokenizerBase) -> None:
    assert isinstance(tokenizer.chat_template, str) and "messages" in tokenizer.chat_template
