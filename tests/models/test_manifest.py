"""A manifest names what a model is made of, so that each chunk can be checked; one that lies is refused."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shoal.errors import BadWeights
from shoal.models.checkpoint.digest import ChunkHasher
from shoal.models.checkpoint.headers import ITEM_SIZE
from shoal.models.checkpoint.manifest import CHUNK, MAX_MANIFEST, ManifestItem, read_manifest, write_manifest
from shoal.models.checkpoint.parts import layout

HASH = "ab" * 32


def tensor(name: str, *shape: int, dtype: str = "F32") -> ManifestItem:
    return ManifestItem(name, ITEM_SIZE[dtype] * math.prod(shape), HASH, dtype, shape)


BLOCKS = [tensor(f"model.layers.{n}.{part}", 8, 4) for n in range(11) for part in ("down", "up")]
MANIFEST = write_manifest(
    {"model_type": "llama"},
    [*BLOCKS, tensor("model.norm", 4), tensor("embed", 100, 4), ManifestItem("tokenizer.json", 3, HASH)],
)


def test_what_is_written_is_read() -> None:
    assert read_manifest(MANIFEST.raw) == MANIFEST
    assert MANIFEST.digest == f"sha256:{hashlib.sha256(MANIFEST.raw).hexdigest()}"


def test_an_items_hash_is_that_of_its_chunks_hashes() -> None:
    data = bytes(range(256)) * (CHUNK // 256) * 2 + b"the rest"
    hasher = ChunkHasher()
    for start in range(0, len(data), 300_001):
        hasher.update(memoryview(data)[start : start + 300_001])
    hashes = hasher.finish()
    chunks = [data[:CHUNK], data[CHUNK : 2 * CHUNK], b"the rest"]
    assert hashes == b"".join(hashlib.sha256(chunk).digest() for chunk in chunks)
    item = ManifestItem("w", len(data), hashlib.sha256(hashes).hexdigest(), "U8", (len(data),))
    assert item.fits(hashes)
    assert not item.fits(hashes[:-1])
    assert not item.fits(hashes[32:] + hashes[:32])
    assert [item.chunk_size(index) for index in range(item.chunks)] == [CHUNK, CHUNK, 8]


def test_each_block_has_a_file_of_its_own_and_what_is_outside_has_one() -> None:
    parts = layout(MANIFEST)
    names = [[MANIFEST.items[number].name for number in part.items] for part in parts]
    assert names[0] == ["embed", "model.norm"]
    assert names[1:] == [[f"model.layers.{n}.down", f"model.layers.{n}.up"] for n in range(11)]
    assert len({part.file for part in parts}) == 12
    for part in parts:
        assert part.begins[0] % 64 == 0
        assert part.size == part.begins[-1] + MANIFEST.items[part.items[-1]].size


def edited(change: Callable[[dict[str, Any]], object]) -> bytes:
    fields = json.loads(MANIFEST.raw)
    change(fields)
    return json.dumps(fields).encode()


LIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "another version": lambda m: m.update(version=1),
    "no config": lambda m: m.update(config=[]),
    "no tensors": lambda m: m.update(tensors=[]),
    "a tensor twice": lambda m: m["tensors"].append(m["tensors"][-1]),
    "out of order": lambda m: m["tensors"].reverse(),
    "a million tensors": lambda m: m.update(tensors=[[str(n), "F32", [1], HASH] for n in range(100_000)]),
    "a path upwards": lambda m: m["files"].insert(0, ["../tokenizer.json", 1, HASH]),
    "an absolute path": lambda m: m["files"].insert(0, ["/etc/passwd", 1, HASH]),
    "a template elsewhere": lambda m: m["files"].insert(0, ["additional_chat_templates/../x.jinja", 1, HASH]),
    "a pooling elsewhere": lambda m: m["files"].insert(0, ["../1_Pooling/config.json", 1, HASH]),
    "a program": lambda m: m["files"].insert(0, ["modeling.py", 1, HASH]),
    "a text file without an end": lambda m: m.update(files=[["tokenizer.json", 1 << 40, HASH]]),
    "a negative size": lambda m: m.update(files=[["tokenizer.json", -1, HASH]]),
    "no size": lambda m: m.update(files=[["tokenizer.json", True, HASH]]),
    "a negative dimension": lambda m: m["tensors"][0].__setitem__(2, [-4, 4]),
    "an endless tensor": lambda m: m["tensors"][0].__setitem__(2, [1 << 40, 1 << 40]),
    "tensors without an end": lambda m: m.update(tensors=[[f"t{n}", "U8", [1 << 42], HASH] for n in (0, 1)]),
    "too many dimensions": lambda m: m["tensors"][0].__setitem__(2, [1] * 9),
    "an unknown type": lambda m: m["tensors"][0].__setitem__(1, "PICKLE"),
    "part of a block": lambda m: m["tensors"][0].__setitem__(slice(1, 3), ["Q4_1", [4, 33]]),
    "a name that is none": lambda m: m["tensors"][0].__setitem__(0, "a" * 600),
    "the name of a header's own": lambda m: m["tensors"].insert(0, ["__metadata__", "F32", [1], HASH]),
    "a hash that is none": lambda m: m["tensors"][0].__setitem__(3, "../" * 21 + "a"),
    "heads that cut": lambda m: m["tensors"][0].extend([7, 0.0]),
    "something taken off": lambda m: m["tensors"][0].extend([0, 1e9]),
    "a list in a list": lambda m: m["tensors"].insert(0, [[]]),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_that_lies_is_refused(lie: str) -> None:
    with pytest.raises(BadWeights):
        read_manifest(edited(LIES[lie]))


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"null", b"[" * 9999, b"\xff\xfe", b" " * (MAX_MANIFEST + 1)], ids=len
)
def test_what_is_no_manifest_is_refused(raw: bytes) -> None:
    with pytest.raises(BadWeights):
        read_manifest(raw)


def test_names_of_parts_are_ours(tmp_path: Path) -> None:
    """Whatever tensors are called, nothing is written outside of the model's folder."""
    odd = write_manifest({}, [tensor("../../etc/passwd", 1), tensor("a/../b.3.w", 1), tensor("x.\x00", 1)])
    assert all(part.file.startswith("part-0000") for part in layout(read_manifest(odd.raw)))
