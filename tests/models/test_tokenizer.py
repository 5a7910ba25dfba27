"""Tokenizers are read without transformers only where that gives the same tokens."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer
from transformers.models.auto.tokenization_auto import (
    MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS,
    TOKENIZER_MAPPING_NAMES,
)

from shoal.errors import BadWeights
from shoal.models.text.codec import TextCodec
from shoal.models.text.tokenizer.fast import load_stored
from shoal.models.text.tokenizer.files import read_files
from shoal.models.text.tokenizer.guard import GuardedTokenizer
from shoal.models.text.tokenizer.slow import load_with_transformers
from shoal.models.text.tokenizer.stored import AS_STORED, FORCED, QWEN2_WORDS, QWEN3_5_WORDS
from shoal.testing.checkpoints import write_test_tokenizer

TEXTS = [
    *("hello world", "  a  b\n\n c", "naïve 漢字 👩\u200d👧 e\u0301!", "", "12345 don't <s>x</s>"),
    *("<|im_end|>\n<|im_start|> <x> y", " ▁hello", "HELLO\tTab\r\n"),
]


def bytes_of(pre_tokenizer: Any, normalizer: Any = None, *, bos: bool = False, **flags: Any) -> Tokenizer:
    letters = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("1", "2"), ("Ġ", "w")]
    vocab = {symbol: i for i, symbol in enumerate([*letters, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, **flags))
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    if bos:
        template = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        tokenizer.post_processor = template
    return tokenizer


def pieces(pre_tokenizer: Any, normalizer: Any, *, strip: bool) -> Tokenizer:
    words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *"▁helowrdabc", "▁h", "▁he"]
    vocab = {word: i for i, word in enumerate(words)}
    merges = [("▁", "h"), ("▁h", "e")]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    template = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.post_processor = template
    return tokenizer


def plain() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def qwen(words: str) -> Tokenizer:
    regex = pre_tokenizers.Split(Regex(words), "isolated")
    steps = [regex, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    return bytes_of(pre_tokenizers.Sequence(steps), normalizers.NFC())


def digits() -> Tokenizer:
    return bytes_of(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain()]))


def gemma() -> Tokenizer:
    split = pre_tokenizers.Split(" ", "merged_with_previous")
    return pieces(split, normalizers.Replace(" ", "▁"), strip=False)


def metaspace(scheme: Any) -> Tokenizer:
    return pieces(pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False), None, strip=True)


def old_llama() -> Tokenizer:
    begin = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return pieces(None, begin, strip=True)


END = {"bos_token": "<s>", "eos_token": "</s>"}
ADDED = {"3": {"content": "<x>", "special": False, "lstrip": True, "rstrip": False, "normalized": False}}
EXTRA = {"additional_special_tokens": ["<|im_end|>"]}
STORED: list[tuple[str, Tokenizer, dict[str, Any]]] = [
    ("llama", bytes_of(plain(), bos=True), END | {"tokenizer_class": "PreTrainedTokenizerFast"}),
    ("llama", digits(), END | {"tokenizer_class": "TokenizersBackend", "add_bos_token": True}),
    ("llama", bytes_of(plain(), bos=True), END | {"tokenizer_class": "LlamaTokenizerFast"}),
    ("llama", bytes_of(plain()), END | {"tokenizer_class": "GPT2Tokenizer", "unk_token": "<unk>"}),
    ("gpt2", bytes_of(plain()), {"tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": False}),
    ("qwen2", qwen(QWEN2_WORDS), {"tokenizer_class": "Qwen2Tokenizer"} | EXTRA),
    ("qwen3", qwen(QWEN2_WORDS), {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None}),
    ("qwen2", qwen(QWEN2_WORDS), END | {"tokenizer_class": "LlamaTokenizerFast"}),
    ("qwen3_5_text", qwen(QWEN3_5_WORDS), {"tokenizer_class": "Qwen3_5Tokenizer"}),
    ("gemma3_text", gemma(), {"tokenizer_class": "GemmaTokenizerFast", "add_bos_token": True}),
    ("llama", metaspace("first"), {"tokenizer_class": "LlamaTokenizer", "legacy": False}),
    ("llama", metaspace("always"), {"tokenizer_class": "LlamaTokenizer", "legacy": True}),
    ("mistral", old_llama(), END | {"tokenizer_class": "LlamaTokenizer"}),
    ("phi3", old_llama(), END | {"tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": ADDED}),
    ("llama", digits(), END | {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": ADDED}),
    ("llama", digits(), {"tokenizer_class": "PreTrainedTokenizerFast", "image_token": "<|im_start|>"}
     | {"eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "lstrip": True, "normalized": False}}),
]  # fmt: skip
THROUGH_TRANSFORMERS: list[tuple[str, Tokenizer, dict[str, Any]]] = [
    ("llama", digits(), END | {"tokenizer_class": "GPT2Tokenizer"}),
    ("llama", old_llama(), END | {"tokenizer_class": "LlamaTokenizer"}),
    ("llama", metaspace("first"), END | {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False}),
    ("qwen2", digits(), {"tokenizer_class": "PreTrainedTokenizerFast"}),
    ("llama", bytes_of(plain(), ignore_merges=True), END | {"tokenizer_class": "GPT2Tokenizer"}),
    ("gpt_neox", bytes_of(plain(), normalizers.NFC(), bos=True), {"tokenizer_class": "GPTNeoXTokenizer"}),
    ("llama", bytes_of(plain()), {"tokenizer_class": "TokenizersBackend", "split_special_tokens": True}),
    ("llama", bytes_of(plain(), bos=True), END),
]  # fmt: skip


def write(folder: Path, kind: str, tokenizer: Tokenizer, config: Mapping[str, Any]) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    return folder


def agree(folder: Path, codec: TextCodec) -> None:
    """The codec does as AutoTokenizer does."""
    reference = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        for special in (True, False):
            ids = codec.encode(text, special=special)
            assert ids == reference.encode(text, add_special_tokens=special), text
            assert codec.decode(ids) == reference.decode(
                ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            assert (
                b"".join(codec.token_bytes(token) for token in ids).decode("utf-8", "replace").strip()
                or not text
            )
    ends = {reference.eos_token_id} - {None}
    assert codec.end_tokens == ends


@pytest.mark.parametrize(("kind", "tokenizer", "config"), STORED)
def test_where_the_file_is_all_it_is_read_alone(
    kind: str, tokenizer: Tokenizer, config: Mapping[str, Any], tmp_path: Path
) -> None:
    folder = write(tmp_path, kind, tokenizer, config)
    vocabulary = load_stored(read_files(folder))
    assert vocabulary is not None
    agree(folder, TextCodec(vocabulary, {}, GuardedTokenizer(vocabulary, "")))


@pytest.mark.parametrize(("kind", "tokenizer", "config"), THROUGH_TRANSFORMERS)
def test_where_a_class_does_otherwise_transformers_is_asked(
    kind: str, tokenizer: Tokenizer, config: Mapping[str, Any], tmp_path: Path
) -> None:
    folder = write(tmp_path, kind, tokenizer, config)
    assert load_stored(read_files(folder)) is None
    vocabulary = load_with_transformers(folder)  # here, where transformers is imported already
    agree(folder, TextCodec(vocabulary, {}, GuardedTokenizer(vocabulary, "")))


def test_transformers_is_asked_in_the_process_apart(tmp_path: Path) -> None:
    kind, tokenizer, config = THROUGH_TRANSFORMERS[0]
    folder = write(tmp_path, kind, tokenizer, config)
    agree(folder, TextCodec.load(folder))


def test_older_files_name_special_tokens_beside_it(tmp_path: Path) -> None:
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    folder = write(tmp_path, "llama", bytes_of(plain(), bos=True), config)
    special = {"eos_token": {"content": "<|im_end|>", "lstrip": False}, "bos_token": "<s>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    assert load_stored(read_files(folder)) is not None
    agree(folder, TextCodec.load(folder))


def test_a_damaged_tokenizer_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadWeights, match="no tokenizer"):
        load_with_transformers(tmp_path)  # here, where transformers is imported already
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BadWeights, match=r"tokenizer\.json"):
        TextCodec.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(BadWeights, match="not a JSON object"):
        TextCodec.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        '{"bos_token": 7, "tokenizer_class": "TokenizersBackend"}'
    )
    bytes_of(plain()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(BadWeights, match="where a token should be"):
        TextCodec.load(tmp_path)


def test_templates_lie_in_files_of_several_kinds(tmp_path: Path) -> None:
    listed = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    config = {"tokenizer_class": "TokenizersBackend", "chat_template": listed}
    folder = write(tmp_path, "llama", bytes_of(plain()), config)
    assert read_files(folder).templates == {"default": "a", "tool_use": "b"}
    assert AutoTokenizer.from_pretrained(folder).chat_template == read_files(folder).templates
    (folder / "chat_template.jinja").write_text("c")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("d")
    assert read_files(folder).templates == {"default": "c", "rag": "d"}
    assert AutoTokenizer.from_pretrained(folder).chat_template == read_files(folder).templates


def test_a_processors_template_is_better_than_none(tmp_path: Path) -> None:
    folder = write(tmp_path, "llama", bytes_of(plain()), {"tokenizer_class": "TokenizersBackend"})
    (folder / "chat_template.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"chat_template": "e"}).encode())
    assert read_files(folder).templates == {"default": "e"}


def test_which_class_transformers_takes_is_as_written_down_here() -> None:
    registered = {kind: str(name).removesuffix("Fast") for kind, name in TOKENIZER_MAPPING_NAMES.items()}
    assert {registered[kind] for kind in AS_STORED} == {"TokenizersBackend"}
    forced = {kind: registered[kind] for kind in MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS}
    assert {
        kind: name for kind, name in forced.items() if name != "TokenizersBackend"
    }.items() <= FORCED.items()


def test_neither_torch_nor_transformers_is_needed(tmp_path: Path) -> None:
    write_test_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    program = (
        "import sys; from pathlib import Path\n"
        "from shoal.models.text.codec import TextCodec\n"
        f"codec = TextCodec.load(Path({str(tmp_path)!r}))\n"
        "prompt = codec.prompt([{'role': 'user', 'content': 'hi</s>'}])\n"
        "assert codec.decode(prompt.token_ids).startswith('user: hi'), prompt\n"
        "assert codec.all_bytes()[codec.encode('h', special=False)[0]] == b'h'\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


def test_a_tokenizers_process_imports_what_a_tokenizer_needs() -> None:
    """Every demo and every `shoal run` waits for the start of one."""
    program = (
        "import sys, shoal.models.text.tokenizer.child\n"
        "print(*sorted(name for name in sys.modules if name.startswith('shoal.')))\n"
        "large = {'numpy', 'pydantic', 'trio', 'platformdirs', 'hashlib', 'subprocess', 'tempfile'}\n"
        "print(*(large & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    ours, large, _ = done.stdout.split("\n")
    beside = {"shoal.errors", "shoal.types", "shoal.models", "shoal.models.text"}
    files = {
        "shoal.models.checkpoint",
        "shoal.models.checkpoint.json_file",
        "shoal.models.store",
        "shoal.models.store.lookalikes",
        "shoal.models.untrusted",
        "shoal.models.untrusted.bounded_json",
        "shoal.models.untrusted.limits",
    }
    others = {name for name in ours.split() if not name.startswith("shoal.models.text.tokenizer")}
    assert others <= beside | files
    assert large == ""
