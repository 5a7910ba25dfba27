"""Tokenizers out of GGUF files give the ids that transformers' own conversion gives, kind by kind."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoTokenizer

from shoal.errors import BadWeights
from shoal.models.gguf.fields import NotCovered
from shoal.models.gguf.pretokenizers import COMPOSED, DIGITS, GPT2, SPLITS
from shoal.models.gguf.splits import read_gguf
from shoal.models.gguf.tokenizer import byte_letters, convert_tokenizer

from .ggufs import close, write_tokenizer_gguf

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
WORDS = [
    "▁",
    "h",
    "e",
    "l",
    "o",
    "w",
    "r",
    "d",
    "▁h",
    "he",
    "ll",
    "hell",
    "hello",
    "▁hello",
    "▁w",
    "wo",
    "▁wo",
    "▁wor",
    "▁▁",
    "▁▁▁",
    "1",
    "2",
    ".",
    "é",
    "漢",
]
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
    convert_tokenizer(read_gguf(file), folder, 256)
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
    for text in TEXTS[:-2] if kind in COMPOSED else TEXTS:
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


def test_the_file_alone_gives_the_same(pair: tuple[Any, Any], tmp_path: Path) -> None:
    """What loads tokenizer.json without transformers gets the ids, the first token among them."""
    _, ours = pair
    alone = Tokenizer.from_file(str(Path(ours.name_or_path) / "tokenizer.json"))
    for text in TEXTS:
        assert alone.encode(text).ids == ours.encode(text)


def converted(tmp_path: Path, kind: str = "gpt2", tokens: list[str] | None = None, **pairs: Any) -> Path:
    """The folder that a Llama's tokenizer becomes."""
    tokens = BYTE_LEVEL if tokens is None else tokens
    stated = {"pre": "gpt-2", "token_type": [1] * len(tokens), **pairs}
    write_tokenizer_gguf(tmp_path / "t.gguf", "llama", kind, tokens, **stated)
    convert_tokenizer(read_gguf(tmp_path / "t.gguf"), tmp_path, 256)
    return tmp_path


@pytest.mark.parametrize("kind", sorted(DIGITS))
def test_digits_are_cut_off_where_the_model_has_it_so(kind: str, tmp_path: Path) -> None:
    """As in llama.cpp and the models' own files: two line breaks before a digit are one token, "12" two."""
    folder = converted(tmp_path, pre=kind, merges=["Ċ Ċ", "1 2"], tokens=[*ALPHABET, "ĊĊ", "12"])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode("\n\n12").tokens == ["ĊĊ", "1", "2"]


def test_gpt2_cuts_the_space_before_a_number_and_not_its_digits(tmp_path: Path) -> None:
    folder = converted(tmp_path, pre="gpt-2", merges=["Ċ Ċ", "1 2"], tokens=[*ALPHABET, "ĊĊ", "12"])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode("\n\n12").tokens == ["Ċ", "Ċ", "12"]


def test_control_words_keep_their_ids_however_they_are_spelled(tmp_path: Path) -> None:
    """DeepSeek's have letters that no byte is spelled as."""
    words = ["<｜User｜>", "<｜end▁of▁sentence｜>", "<｜tool▁call｜>"]
    tokens = [*ALPHABET, *words]
    folder = converted(tmp_path, tokens=tokens, token_type=[1] * 256 + [4, 3, 3], merges=[], eos_token_id=257)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == len(tokens)
    assert tokenizer.encode("".join(words)).ids == [256, 257, 258]
    assert tokenizer.decode([256, 257]) == words[0]


def test_a_space_is_put_before_a_text_unless_the_file_says_no(tmp_path: Path) -> None:
    for prefixed in (True, False):
        folder = converted(tmp_path, "llama", PIECES, scores=SCORES, add_space_prefix=prefixed)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        found = tokenizer.encode("hello", add_special_tokens=False)
        assert "".join(found.tokens) == ("▁hello" if prefixed else "hello")
        assert tokenizer.decode(found.ids) == "hello"


def test_templates_for_tools_are_kept(tmp_path: Path) -> None:
    for more in ({}, {"tool_use": "with tools"}):
        writer = gguf.GGUFWriter(tmp_path / "t.gguf", "llama")
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(ALPHABET)
        named = [{"name": name, "template": template} for name, template in more.items()]
        writer.add_chat_template([{"name": "default", "template": "plain"}, *named] if named else "plain")
        close(writer)
        convert_tokenizer(read_gguf(tmp_path / "t.gguf"), tmp_path, 256)
        found = json.loads((tmp_path / "tokenizer_config.json").read_text())["chat_template"]
        assert found == ([{"name": "default", "template": "plain"}, *named] if named else "plain")


def test_a_model_without_a_tokenizer_gets_none(tmp_path: Path) -> None:
    converted(tmp_path, "no_vocab", ["x"])
    assert not list(tmp_path.glob("tokenizer*"))


@pytest.mark.parametrize("kind", [("bert", "gpt-2"), ("gpt2", "of tomorrow"), ("gpt2", "")])
def test_kinds_that_are_not_known_are_left_to_others(kind: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(NotCovered):
        converted(tmp_path, kind[0], pre=kind[1])


BAD: dict[str, dict[str, Any]] = {
    "a merge of no tokens": {"merges": ["h zz"]},
    "a merge of one": {"merges": ["h"]},
    "an end that is no token": {"eos_token_id": 10**6},
    "no scores": {"kind": "llama"},
    "a token without end": {"kind": "llama", "tokens": ["a" * 600], "scores": [0.0]},
    "types that are texts": {"token_type": ["a"] * len(BYTE_LEVEL)},
    "a flag that is a number": {"add_bos_token": 7},
    "no tokens": {"tokens": [], "token_type": [1]},
}


@pytest.mark.parametrize("what", BAD)
def test_tokens_that_do_not_belong_together_are_refused(what: str, tmp_path: Path) -> None:
    with pytest.raises(BadWeights):
        converted(tmp_path, **BAD[what])


def test_bytes_are_spelled_as_gpt2_spells_them() -> None:
    assert set(byte_letters().values()) == set(ALPHABET)
    tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in ("a b\n\x7f", "é漢\xad\u0100👍"):
        spelled = "".join(byte_letters()[byte] for byte in text.encode())
        assert tokenizer.pre_tokenize_str(text)[0][0] == spelled
