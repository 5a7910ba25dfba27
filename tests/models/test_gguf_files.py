"""GGUF headers that lie, and models in several files: what is wrong is named, and nothing is built of it."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import BadWeights, ModelError, UnknownModel, UnsupportedModel
from shoal.models.checkpoint.checkpoint import open_checkpoint
from shoal.models.checkpoint.digest import compute_digest
from shoal.models.gguf.header import MAX_ITEMS, read_gguf_header
from shoal.models.gguf.names import shard_names, whole_name
from shoal.models.gguf.splits import read_gguf
from shoal.models.store.convert import convert_gguf
from shoal.models.store.store import ModelStore
from shoal.progress import silent

from .ggufs import write_family


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def info(name: str, shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def write(path: Path, pairs: list[bytes], infos: list[bytes], data: int = 64, version: int = 3) -> Path:
    header = b"GGUF" + struct.pack("<IQQ", version, len(infos), len(pairs)) + b"".join(pairs + infos)
    path.write_bytes(header + bytes(-len(header) % 32) + bytes(data))
    return path


ARCH = pair("general.architecture", 8, text("llama"))


def test_an_honest_file_is_read(tmp_path: Path) -> None:
    numbers = pair("list", 9, struct.pack("<IQ3i", 5, 3, 1, -2, 3))
    words = pair("words", 9, struct.pack("<IQ", 8, 2) + text("a") + text("é"))
    file = write(tmp_path / "x.gguf", [ARCH, numbers, words], [info("a"), info("b", (2, 3), 1, 32)])
    header = read_gguf_header(file)
    assert header.pairs == {"general.architecture": "llama", "list": [1, -2, 3], "words": ["a", "é"]}
    a, b = header.tensors
    assert (a.name, a.shape, a.size, b.shape, b.size, b.begin - a.begin) == ("a", (4,), 16, (3, 2), 12, 32)


LIES: dict[str, tuple[list[bytes], list[bytes], str]] = {
    "truncated": ([ARCH], [info("a", (1000,))], "truncated"),
    "past_the_end": ([ARCH], [info("a", offset=2**40)], "truncated"),
    "overlap": ([ARCH], [info("a"), info("b", offset=8)], "overlaps"),
    "same_place": ([ARCH], [info("a"), info("b")], "overlaps"),
    "twice": ([ARCH], [info("a"), info("a", offset=32)], "twice"),
    "pair_twice": ([ARCH, ARCH], [], "twice"),
    "huge_shape": ([ARCH], [info("a", (2**40, 2**40))], "impossible"),
    "huge_offset": ([ARCH], [info("a", offset=2**63)], "impossible"),
    "no_dimensions": ([ARCH], [info("a", ())], "dimensions"),
    "many_dimensions": ([ARCH], [info("a", (1,) * 5)], "dimensions"),
    "half_a_block": ([ARCH], [info("a", (33,), 3)], "whole blocks"),
    "endless_text": ([text("a") + struct.pack("<IQ", 8, 2**60)], [], "truncated"),
    "endless_key": ([struct.pack("<Q", 2**63)], [], "truncated"),
    "many_elements": ([pair("a", 9, struct.pack("<IQ", 0, MAX_ITEMS + 1))], [], "elements"),
    "lists_of_lists": ([pair("a", 9, struct.pack("<IQ", 9, 1))], [], "not accepted"),
    "no_such_type": ([pair("a", 13, b"")], [], "type 13"),
    "no_utf8": ([pair("a", 8, struct.pack("<Q", 1) + b"\xff")], [], "UTF-8"),
    "alignment": ([pair("general.alignment", 4, struct.pack("<I", 7))], [], "aligned"),
    "alignment_0": ([pair("general.alignment", 4, struct.pack("<I", 0))], [], "aligned"),
    "alignment_text": ([pair("general.alignment", 8, text("x"))], [], "aligned"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_named(lie: str, tmp_path: Path) -> None:
    pairs, infos, said = LIES[lie]
    with pytest.raises(BadWeights, match=said) as caught:
        read_gguf_header(write(tmp_path / "x.gguf", pairs, infos))
    assert "x.gguf" in str(caught.value)
    assert caught.value.check


def test_counts_are_bounded(tmp_path: Path) -> None:
    for counts in ((100_000, 0), (0, 2**40), (2**63, 2**63)):
        (tmp_path / "x.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, *counts))
        with pytest.raises(BadWeights, match="claims"):
            read_gguf_header(tmp_path / "x.gguf")


def test_other_versions_and_types_are_unsupported(tmp_path: Path) -> None:
    for version, said in ((1, "version 1"), (4, "version 4"), (3 << 24, "big-endian")):
        with pytest.raises(UnsupportedModel, match=said):
            read_gguf_header(write(tmp_path / "x.gguf", [ARCH], [], version=version))
    with pytest.raises(UnsupportedModel, match="type 999"):
        read_gguf_header(write(tmp_path / "x.gguf", [ARCH], [info("a", kind=999)]))


BAD_NUMBERS = {
    "negative": struct.pack("<Ii", 5, -1),
    "text": struct.pack("<I", 8) + text("many"),
    "nan": struct.pack("<If", 6, float("nan")),
    "huge": struct.pack("<IQ", 10, 2**62),
    "list": struct.pack("<IIQI", 9, 4, 1, 6),
}


@pytest.mark.parametrize("number", BAD_NUMBERS)
@pytest.mark.parametrize(
    "key", ["llama.block_count", "llama.embedding_length", "tokenizer.ggml.eos_token_id"]
)
def test_numbers_that_cannot_be_are_refused(key: str, number: str, tmp_path: Path) -> None:
    sizes = ("block_count", "embedding_length", "attention.head_count", "feed_forward_length")
    keys = {f"llama.{name}": struct.pack("<II", 4, 4) for name in (*sizes, "context_length", "vocab_size")}
    keys["llama.attention.layer_norm_rms_epsilon"] = struct.pack("<If", 6, 1e-5)
    keys[key] = BAD_NUMBERS[number]
    pairs = [ARCH, *(text(name) + value for name, value in keys.items())]
    with pytest.raises(ModelError):
        convert_gguf(write(tmp_path / "x.gguf", pairs, [info("token_embd.weight")]), tmp_path / "out", silent)


@given(raw=st.binary(max_size=300), counts=st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_no_bytes_do_more_than_be_refused(
    raw: bytes, counts: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, *counts) + raw)
    with suppress(ModelError):
        read_gguf_header(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("split")
    write_family(root / "big.gguf", root / "hf", "llama", split=20)
    assert len(list(root.glob("big-*-of-00003.gguf"))) == 3
    return root


@pytest.fixture
def split(whole: Path, tmp_path: Path) -> list[Path]:
    """The three files of one model."""
    return [Path(shutil.copy(file, tmp_path)) for file in sorted(whole.glob("big-*.gguf"))]


LIES_OF_THE_INDEX: dict[str, dict[str, Any]] = {
    "another type": {"type": "Q9_9"},
    "no type": {"type": None},
    "half a block": {"shape": [64, 33]},
    "no sizes": {"shape": []},
    "a huge size": {"shape": [2**40, 2**40 * 32]},
    "size 0": {"shape": [0, 64]},
    "another folder": {"file": "../model.gguf"},
    "another kind of file": {"file": "config.json"},
    "a file that is not there": {"file": "other.gguf"},
    "a file whose name has a zero": {"file": "a\0.gguf"},
    "a file whose name is no text": {"file": "\ud800.gguf"},
    "a file whose name is too long": {"file": "a" * 5000 + ".gguf"},
    "before the file": {"begin": -1},
    "behind the file": {"begin": 2**40},
    "heads that are cut": {"heads": 3},
    "heads of nothing": {"heads": -2},
    "another offset": {"less": float("inf")},
    "a text": {"begin": "0"},
}


@pytest.mark.parametrize("lie", LIES_OF_THE_INDEX)
def test_a_lie_of_the_index_is_named(lie: str, tmp_path: Path) -> None:
    """It may have come with a stranger's folder."""
    write_family(tmp_path / "m.gguf", tmp_path / "hf", "llama")
    convert_gguf(tmp_path / "m.gguf", tmp_path / "out", silent)
    index = tmp_path / "out" / "gguf.json"
    stated = json.loads(index.read_text())
    assert len(open_checkpoint(tmp_path / "out").tensors) == len(stated["tensors"])
    stated["tensors"]["model.layers.0.self_attn.q_proj.weight"] |= LIES_OF_THE_INDEX[lie]
    index.write_text(json.dumps(stated))
    with pytest.raises(BadWeights) as caught:
        open_checkpoint(tmp_path / "out")
    assert caught.value.check
    assert len(str(caught.value).encode()) < 1000  # and it can be written as text


@pytest.mark.parametrize("content", ["[]", "{}", '{"tensors": {}}', '{"tensors": {"a": 1}}', "{"])
def test_an_index_that_is_none_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "gguf.json").write_text(content)
    with pytest.raises(BadWeights):
        open_checkpoint(tmp_path)


def test_a_scale_that_is_no_number_is_found_when_the_file_is_hashed(tmp_path: Path) -> None:
    write_family(tmp_path / "m.gguf", tmp_path / "hf", "llama")
    convert_gguf(tmp_path / "m.gguf", tmp_path / "out", silent, take=True)
    checkpoint = open_checkpoint(tmp_path / "out")
    compute_digest(checkpoint)
    entry = checkpoint.tensors["model.layers.2.mlp.up_proj.weight"]
    raw = bytearray(entry.file.read_bytes())
    raw[entry.begin + 20 * 7 + 2 : entry.begin + 20 * 7 + 4] = b"\0\x7c"  # the minimum of the eighth block
    entry.file.write_bytes(raw)
    with pytest.raises(BadWeights, match=r"layers\.2\.mlp\.up_proj"):
        compute_digest(checkpoint)


def test_whoever_reorders_the_rows_has_another_model(tmp_path: Path) -> None:
    write_family(tmp_path / "m.gguf", tmp_path / "hf", "llama")
    convert_gguf(tmp_path / "m.gguf", tmp_path / "out", silent)
    checkpoint = open_checkpoint(tmp_path / "out")
    name = "model.layers.0.self_attn.q_proj.weight"
    other = {**checkpoint.tensors, name: replace(checkpoint.tensors[name], heads=2)}
    assert compute_digest(replace(checkpoint, tensors=other)) != compute_digest(checkpoint)


def test_names_of_shards() -> None:
    assert shard_names("m.gguf") == ["m.gguf"]
    names = shard_names("m-Q4-00002-of-00003.GGUF")
    assert names == [f"m-Q4-0000{number}-of-00003.GGUF" for number in (1, 2, 3)]
    assert [whole_name(name) for name in (names[1], "m.gguf", "a.b.gguf")] == ["m-Q4", "m", "a.b"]
    for name in ("m-00004-of-00003.gguf", "m-00000-of-00003.gguf", "m-00001-of-00000.gguf"):
        with pytest.raises(BadWeights):
            shard_names(name)


def test_a_split_model_is_read_from_any_of_its_files(
    split: list[Path], whole: Path, store: ModelStore, tmp_path: Path
) -> None:
    models = [store.resolve(str(file)) for file in split]
    assert models[0] == models[1] == models[2] == store.resolve("big")
    assert models[0].name == "big"
    write_family(tmp_path / "one.gguf", tmp_path / "hf", "llama")
    assert store.pull(str(tmp_path / "one.gguf")).digest == models[0].digest
    split[2].write_bytes(split[2].read_bytes())  # touched: another model, perhaps
    assert store.pull(str(split[0])).source != models[0].source


def test_a_missing_file_is_named_whichever_is_asked_for(split: list[Path], store: ModelStore) -> None:
    split[1].unlink()
    for file in split:
        with pytest.raises(BadWeights, match=f"{split[1].name} is missing") as caught:
            store.pull(str(file))
        assert "all 3" in caught.value.check


def swap(split: list[Path]) -> None:
    content = [file.read_bytes() for file in split]
    split[1].write_bytes(content[2])
    split[2].write_bytes(content[1])


def from_another(split: list[Path]) -> None:
    folder = split[0].parent / "other"
    folder.mkdir()
    write_family(folder / "big.gguf", folder / "hf", "llama_untied", split=20)
    shutil.copy(folder / split[2].name, split[2])


def lies_of_count(split: list[Path]) -> None:
    raw = split[1].read_bytes()
    at = raw.index(b"split.count") + len("split.count") + 4
    split[1].write_bytes(raw[:at] + b"\7\0" + raw[at + 2 :])


def renamed(split: list[Path]) -> None:
    split[0].rename(split[0].with_name("renamed.gguf"))
    split[0] = split[0].with_name("renamed.gguf")


def another_number(split: list[Path]) -> None:
    for number, file in enumerate(list(split[:2]), 1):
        split[number - 1] = file.rename(file.with_name(f"big-0000{number}-of-00002.gguf"))


def the_same_twice(split: list[Path]) -> None:
    shutil.copy(split[1], split[2])


def a_whole_one(split: list[Path]) -> None:
    folder = split[0].parent / "whole"
    folder.mkdir()
    write_family(folder / "m.gguf", folder / "hf", "llama")
    shutil.copy(folder / "m.gguf", split[0])


WRONG: dict[str, tuple[Callable[[list[Path]], None], str]] = {
    "out of order": (swap, r"file 2, its header \(split.no\) 3"),
    "of another model": (from_another, "holds? .* tensors|in two of"),
    "a lie about how many": (lies_of_count, r"3 files, its header \(split.count\) 7"),
    "renamed": (renamed, r"one of 3 files of a model \(split.count\)"),
    "numbered anew": (another_number, r"2 files, its header \(split.count\) 3"),
    "the same twice": (the_same_twice, "split.no"),
    "a whole model": (a_whole_one, "split.count"),
}


@pytest.mark.parametrize("what", WRONG)
def test_files_that_do_not_belong_together_are_named(what: str, split: list[Path]) -> None:
    change, said = WRONG[what]
    change(split)
    with pytest.raises(BadWeights, match=said) as caught:
        read_gguf(split[0])
    assert caught.value.check


def test_a_file_that_is_not_there_is_no_model(store: ModelStore, tmp_path: Path) -> None:
    for name in ("nothing.gguf", "x-00001-of-00003.gguf", "x-00009-of-00003.gguf"):
        with pytest.raises(UnknownModel):
            store.pull(str(tmp_path / name))
