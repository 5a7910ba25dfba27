"""Text to tokens and back, piece by piece."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from shoal.errors import UsageError
from shoal.models.text.codec import TextCodec
from shoal.testing.checkpoints import VOCAB, write_test_tokenizer


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_test_tokenizer(folder)
    return TextCodec.load(folder)


@pytest.fixture(scope="module")
def sentencepiece_like(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    """As Llama 2 and Gemma: spaces are a letter, bytes are tokens, the first space is stripped."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "h", "i", "▁h", "▁hi", "é"]
    bpe = models.BPE(
        vocab={word: i for i, word in enumerate(words)},
        merges=[("▁", "h"), ("▁h", "i")],
        byte_fallback=True,
        unk_token="<unk>",
        fuse_unk=True,
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    folder = tmp_path_factory.mktemp("sentencepiece")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>").save_pretrained(
        folder
    )
    return TextCodec.load(folder)


def streamed(codec: TextCodec, ids: list[int]) -> list[str]:
    detokenizer = codec.detokenizer()
    return [*(detokenizer.push(token) for token in ids), detokenizer.finish()]


TEXTS = ["hello world", " a  b\n\n", "naïve 漢字 👩‍👩‍👧!", "\ufffd and \ufffd\ufffd", "", "hi hi hé"]


@pytest.mark.parametrize("text", TEXTS)
def test_streamed_text_is_the_text(text: str, byte_level: TextCodec, sentencepiece_like: TextCodec) -> None:
    for codec in (byte_level, sentencepiece_like):
        ids = codec.encode(text)
        assert "".join(streamed(codec, ids)) == codec.decode(ids) == text


def test_half_a_character_is_never_shown(byte_level: TextCodec, sentencepiece_like: TextCodec) -> None:
    pieces = streamed(byte_level, byte_level.encode("h👍漢"))
    assert [piece for piece in pieces if piece] == ["h", "👍", "漢"]
    pieces = streamed(sentencepiece_like, sentencepiece_like.encode("h👍i漢"))
    assert [piece for piece in pieces if piece] == ["h", "👍i", "漢"]


@settings(max_examples=150, deadline=None)
@given(ids=st.lists(st.integers(0, VOCAB - 1), max_size=40))
def test_whatever_a_model_says_adds_up(
    ids: list[int], byte_level: TextCodec, sentencepiece_like: TextCodec
) -> None:
    assert "".join(streamed(byte_level, ids)) == byte_level.decode(ids)
    ids = [token % 264 for token in ids]
    assert "".join(streamed(sentencepiece_like, ids)) == sentencepiece_like.decode(ids)


def test_special_tokens_are_not_text(byte_level: TextCodec) -> None:
    ids = byte_level.encode("hi")
    assert byte_level.decode([1, *ids, 2]) == "hi"


def test_chat_is_rendered_as_transformers_does(folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("llama")
    codec, tokenizer = TextCodec.load(folder), AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "héllo <b>"}, {"role": "assistant", "content": "x"}]
    prompt = codec.prompt(messages)
    assert prompt.text == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert prompt.token_ids == expected


def test_bad_text_is_refused(byte_level: TextCodec) -> None:
    with pytest.raises(UsageError, match="Unicode"):
        byte_level.encode("\ud800")
    with pytest.raises(UsageError, match="characters"):
        byte_level.encode("a" * (5 << 20))
    with pytest.raises(UsageError):
        byte_level.decode([-1])
    with pytest.raises(UsageError, match="no messages"):
        byte_level.prompt([])


def test_without_a_template_messages_are_put_one_after_another(sentencepiece_like: TextCodec) -> None:
    assert not sentencepiece_like.has_template
    messages = [{"role": "system", "content": "hi"}, {"role": "user", "content": "hi hi"}]
    prompt = sentencepiece_like.prompt(messages)
    assert (prompt.text, prompt.token_ids) == ("hi\n\nhi hi", sentencepiece_like.encode("hi\n\nhi hi"))
