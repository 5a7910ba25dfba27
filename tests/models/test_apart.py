"""Tokenizers that mean harm: they panic, abort, never end or fill the memory, in a process of their own."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders

from shoal.errors import BadWeights, Busy, ShoalError
from shoal.models.text.codec import TextCodec
from shoal.models.text.tokenizer import apart
from shoal.models.text.tokenizer.apart import ApartTokenizer
from shoal.models.text.tokenizer.decoders import harmless
from shoal.models.text.tokenizer.files import CONFIG, TOKENIZER
from shoal.models.untrusted import child, panics

PAIRS = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def write(folder: Path, **parts: Any) -> Path:
    empty = dict.fromkeys(
        ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    )
    whole = {"version": "1.0", "added_tokens": [], "model": PAIRS} | empty | parts
    (folder / TOKENIZER).write_text(json.dumps(whole))
    (folder / CONFIG).write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


def cut_at(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def test_an_honest_tokenizer_does_the_same_there(tmp_path: Path) -> None:
    codec = TextCodec.load(write(tmp_path))
    assert codec.encode("aab") == [0, 2]
    assert codec.decode([0, 2, 1]) == Tokenizer.from_file(str(tmp_path / TOKENIZER)).decode([0, 2, 1])


GREEDY = {"type": "Sequence", "decoders": [{"type": "Strip", "content": "a", "start": 0, "stop": 4}]}
GROWING = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
WITHOUT_ID = {"SpecialToken": {"id": "x", "type_id": 0}}
PANICS: dict[str, dict[str, Any]] = {
    "merges that belong to a prefix": {"model": PAIRS | {"continuing_subword_prefix": "####"}},
    "letters cut in the middle": {
        "model": {
            "type": "BPE",
            "continuing_subword_prefix": "é",
            "vocab": {"é": 0, "b": 1, "éb": 2},
            "merges": [["b", "é"], ["é", "b"]],
        }
    },
    "a table of characters that ends early": {
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8="}
    },
    "a table of characters of nothing": {
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": "/wD//wD/AAAAAAAAAAAAAA=="}
    },
    "pieces of no length": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "an end that is no token": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [WITHOUT_ID, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        }
    },
    "a regex that tries every way": {"pre_tokenizer": cut_at("(a+)+$")},
    "letters that become gigabytes": {"normalizer": {"type": "Sequence", "normalizers": [GROWING] * 12}},
    "no token for the unknown": {
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 9,
            "vocab": {"a": 0},
        }
    },
    "an unknown that is not in it": {"model": {"type": "Unigram", "unk_id": None, "vocab": [["é", -1.0]]}},
}


@pytest.mark.parametrize("what", PANICS)
def test_one_that_panics_or_aborts_fails_alone(what: str, tmp_path: Path) -> None:
    write(tmp_path, **PANICS[what])
    with pytest.raises(BadWeights) as caught:
        TextCodec.load(tmp_path).encode("a" * 40 + "bé")
    assert str(tmp_path) in caught.value.message and caught.value.check


def test_a_decoder_that_panics_fails_alone_and_the_next_text_is_decoded(tmp_path: Path) -> None:
    codec = TextCodec.load(write(tmp_path, decoder=GREEDY))
    for _ in range(2):
        with pytest.raises(BadWeights):
            codec.decode([0])
    assert codec.encode("ab") == [2]


def test_a_regex_that_takes_minutes_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "ENCODES_WITHIN_S", 0.5)
    codec = TextCodec.load(write(tmp_path, pre_tokenizer=cut_at("a+c")))
    began = time.monotonic()
    with pytest.raises(BadWeights, match="did not end"):
        codec.encode("a" * 200_000)
    assert time.monotonic() - began < 20
    assert codec.encode("ab") == [2]


NESTED = "[" * 200_000 + "]" * 200_000


@pytest.mark.parametrize(
    "name", [TOKENIZER, CONFIG, "special_tokens_map.json", "config.json", "chat_template.json"]
)
def test_a_file_that_is_nested_deeply_is_refused(name: str, tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / name).write_text(NESTED)
    with pytest.raises(BadWeights):
        TextCodec.load(tmp_path)
    if name != TOKENIZER:
        (tmp_path / name).write_text('{"x": ' + NESTED + "}")
        with pytest.raises(BadWeights):
            TextCodec.load(tmp_path)


LARGE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "an id of which no table can be made": ({"model": PAIRS | {"vocab": {"a": 2**32 - 1}, "merges": []}}, {}),
    "a token of a million letters": ({"model": PAIRS | {"vocab": {"a" * 10**6: 0}, "merges": []}}, {}),
    "very many added tokens": (
        {"added_tokens": [{"id": i + 3, "content": f"<{i}>"} | ADDED for i in range(2000)]},
        {},
    ),
    "an added token's id that is no number": ({}, {"added_tokens_decoder": {"x": {"content": "y"}}}),
    "added tokens that are none": ({}, {"added_tokens_decoder": {"9": {"content": {"content": "y"}}}}),
}


@pytest.mark.parametrize("what", LARGE)
def test_a_vocabulary_that_no_honest_model_has_is_refused(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apart, "MAX_ADDED", 1000)
    parts, said = LARGE[what]
    write(tmp_path, **parts)
    (tmp_path / CONFIG).write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"} | said))
    with pytest.raises(BadWeights):
        TextCodec.load(tmp_path)


def test_numbers_that_mean_nothing_here_change_nothing(tmp_path: Path) -> None:
    write(
        tmp_path,
        truncation={"max_length": 2, "strategy": "LongestFirst", "stride": 5, "direction": "Right"},
        padding={"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None}
        | {"pad_id": 0, "pad_type_id": 0, "pad_token": "a"},
    )
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 10**30}
    (tmp_path / CONFIG).write_text(json.dumps(said))
    assert TextCodec.load(tmp_path).encode("aab") == [0, 2]


def test_a_process_that_is_killed_is_started_again(tmp_path: Path) -> None:
    tokenizer = ApartTokenizer(write(tmp_path))
    assert tokenizer.pid is not None
    os.kill(tokenizer.pid, signal.SIGKILL)
    found: list[list[int]] = []
    for _ in range(2):
        try:
            found.append(tokenizer.encode("ab", special=False))
        except BadWeights:  # it was not gone yet when it was asked
            continue
    assert found and found[-1] == [2]


def test_it_has_no_secrets_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("SHOAL_SECRET", "secret")
    tokenizer = ApartTokenizer(write(tmp_path))
    assert b"secret" not in Path(f"/proc/{tokenizer.pid}/environ").read_bytes()


def test_a_tokenizer_that_hangs_holds_few_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "ENCODES_WITHIN_S", 3.0)
    codec = TextCodec.load(write(tmp_path, pre_tokenizer=cut_at("a+c")))
    raised: list[ShoalError] = []

    def ask(text: str) -> None:
        try:
            codec.encode(text)
        except ShoalError as error:
            raised.append(error)

    threads = [threading.Thread(target=ask, args=["a" * 200_000])]
    threads += [threading.Thread(target=ask, args=["ab"]) for _ in range(child.WAITING + 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(error, Busy) for error in raised) == 6
    assert sum(isinstance(error, BadWeights) for error in raised) == 1


HARMLESS = [
    decoders.ByteLevel(),
    decoders.Metaspace(),
    decoders.WordPiece(),
    decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    ),
]
PIECES = ["▁a", "<0xC3>", "<0xA9>", "##b", "Ġc", "", " ", "▁", "Ã", "©"]


@pytest.mark.parametrize("decoder", HARMLESS, ids=str)
def test_a_harmless_decoder_is_used_here_and_decodes_the_same(decoder: Any) -> None:
    made = harmless(json.loads(decoder.__getstate__()))
    assert made is not None
    for end in range(len(PIECES) + 1):
        assert made(PIECES[:end]) == decoder.decode(PIECES[:end])


HARMFUL: list[dict[str, Any]] = [
    {"type": "CTC", "pad_token": "a", "word_delimiter_token": "|", "cleanup": True},
    {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""},
    GROWING,
    GREEDY,
    {"type": "Sequence", "decoders": [{"type": "Fuse"}] * 99},
    {"type": "WordPiece", "prefix": "x" * 10**6, "cleanup": True},
    {"type": "Metaspace", "replacement": "xx", "prepend_scheme": "always", "split": True},
    {"type": "Alien"},
    {},
]


@pytest.mark.parametrize("stated", HARMFUL, ids=str)
def test_any_other_decoder_is_used_in_the_process_apart(stated: dict[str, Any]) -> None:
    assert harmless(stated) is None


def test_a_panic_outside_of_it_is_told_as_any_error_and_nothing_else_is_caught(tmp_path: Path) -> None:
    write(tmp_path, **PANICS["a table of characters that ends early"])
    with pytest.raises(BadWeights, match=r"index out of bounds"), panics.as_errors(tmp_path):
        Tokenizer.from_file(str(tmp_path / TOKENIZER)).encode("zz")
    for other in (KeyboardInterrupt, SystemExit, ValueError):
        with pytest.raises(other), panics.as_errors(tmp_path):
            raise other


def test_a_process_works_in_the_folder_that_it_is_given(tmp_path: Path) -> None:
    asked = child.Child(
        ["-c", "import os; input(); print(os.getcwd())"], longest_answer=4096, folder=tmp_path
    )
    try:
        assert asked.ask(b"", 60) == f"{tmp_path.resolve()}\n".encode()
    finally:
        asked.close()
