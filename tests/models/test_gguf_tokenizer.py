"""Tokenizers out of GGUF files: the same ids as transformers' own conversion gives, for every kind we know."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoTokenizer

from shoal.errors import BadWeights
from shoal.models.gguf_files import tokenizer as converted
from shoal.models.gguf_files.fields import NotCovered
from shoal.models.gguf_files.pretokenizers import DIGITS, GPT2, SPLITS
from shoal.models.gguf_files.splits import read_gguf
from shoal.models.gguf_files.tokenizer import byte_letters, write_tokenizer

from .ggufs import write_tokenizer_gguf

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [
    "h e",
    "l l",
    "he ll",
    "hell o",
    "Ġ w",
    "Ġ Ġ",
    "Ċ Ċ",
    "1 2",
    "12 3",
    "' s",
    "w o",
    "Ġ 1",
    ". Ċ",
    "Ã ©",
]
BYTE_LEVEL = ["<unk>", "<s>", "</s>", "<think>", *ALPHABET, *(merge.replace(" ", "") for merge in MERGES)]
BYTE_TYPES = [3, 3, 3, 4] + [1] * (len(BYTE_LEVEL) - 4)
WORDS = "▁ h e l o w r d ▁h he ll hell hello ▁hello ▁w wo ▁wo ▁wor ▁▁ ▁▁▁ 1 2 . é 漢".split()
PIECES = ["<unk>", "<s>", "</s>", "<turn>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
PIECE_TYPES = [2, 3, 3, 4] + [6] * 256 + [1] * len(WORDS)
SCORES = [0.0] * 260 + [-float(max(0, 20 - 3 * len(word))) for word in WORDS]
ENDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
TEXTS = [
    *("hello world", " hello  wor   1", "HE'S 1234567 it's", "a\n\n1. b\r\n\tc", "naïve é 漢字 👩‍👩‍👧!", ""),
    *(
        "<s>hello</s> hello",
        "x<think>hello</think> y",
        "hello<turn>hello <turn> w",
        "  ",
        "e\u0301",
        "a.\n/b",
    ),
]


def both(file: Path, folder: Path) -> tuple[Any, Any]:
    """Transformers' own conversion of the file, and what it makes of ours."""
    folder.mkdir()
    write_tokenizer(read_gguf(file), folder, 256)
    config = {"model_type": "llama"}
    (folder / "config.json").write_text(json.dumps(config))
    theirs = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    return theirs, AutoTokenizer.from_pretrained(folder)


needs_their_kinds = pytest.mark.skipif(
    importlib.util.find_spec("transformers.integrations.gguf") is None,
    reason="this transformers cuts texts of all kinds alike",
)


@needs_their_kinds
@pytest.mark.parametrize("kind", sorted({*SPLITS, *GPT2}))
def test_byte_pairs_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    pairs = ENDS | {"pre": kind, "token_type": BYTE_TYPES, "merges": MERGES}
    file = write_tokenizer_gguf(tmp_path / "t.gguf", "llama", "gpt2", BYTE_LEVEL, **pairs)
    theirs, ours = both(file, tmp_path / "ours")
    for text in TEXTS[:-2] if kind in ("qwen2", "deepseek-r1-qwen", "megrez") else TEXTS:
        assert ours.encode(text) == theirs.encode(text), text
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text)), text


@needs_their_kinds
@pytest.mark.parametrize("arch", ["llama", "phi3", "gemma3"])
@pytest.mark.parametrize("bos", [True, False, None])
def test_sentencepiece_is_that_of_transformers(arch: str, bos: bool | None, tmp_path: Path) -> None:
    pairs = (
        ENDS | {"token_type": PIECE_TYPES, "scores": SCORES} | ({} if bos is None else {"add_bos_token": bos})
    )
    file = write_tokenizer_gguf(tmp_path / "t.gguf", arch, "llama", PIECES, **pairs)
    theirs, ours = both(file, tmp_path / "ours")
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text), text
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text)), text
    assert (ours.encode("hello")[0] == 1) is (bos is not False)


@needs_their_kinds
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.sampled_from("hello wor12.'s\n\t▁é漢 <>"), max_size=40))
def test_whatever_the_text_the_tokens_are_the_same(text: str, pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    assert ours.encode(text) == theirs.encode(text)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    root = tmp_path_factory.mktemp("pair")
    pairs = ENDS | {"token_type": PIECE_TYPES, "scores": SCORES}
    return both(write_tokenizer_gguf(root / "t.gguf", "llama", "llama", PIECES, **pairs), root / "ours")
