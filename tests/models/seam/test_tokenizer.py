"""Tokenizers are read from a folder, offline; what they give and take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece

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


@pytest.mark.parametrize(("kind", "family"), [("bpe", "Llama"), ("unigram", "XGLM")])
def test_a_sentencepiece_model_alone_is_enough(kind: str, family: str, tmp_path: Path) -> None:
    """Transformers converts tokenizer.model by a protobuf class of sentencepiece: their versions must fit."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the fish swims in the sea", "a shoal of fish eats 42 shrimps"]),
        model_prefix=str(tmp_path / "tokenizer"),
        model_type=kind,
        vocab_size=320,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family.lower()}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": f"{family}Tokenizer"}))
    loaded = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=False, local_files_only=True)
    itself = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    for text in ("the fish eats 42 shrimps", "shoals are a sea of fish"):
        assert loaded.encode(text, add_special_tokens=False) == itself.encode(text)
