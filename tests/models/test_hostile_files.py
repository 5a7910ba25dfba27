"""Safetensors files and indexes that lie: refused by their headers, before a tensor is read."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import BadWeights
from shoal.models.checkpoint.checkpoint import INDEX, open_checkpoint
from shoal.models.checkpoint.headers import read_safetensors_header
from shoal.testing.checkpoints import write_checkpoint

HONEST: dict[str, Any] = {
    "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [16, 24]},
}


def write(path: Path, header: Any, data: bytes = bytes(24), length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def changed(name: str, **fields: Any) -> dict[str, Any]:
    return HONEST | {name: HONEST[name] | fields}


def test_an_honest_file_is_read(tmp_path: Path) -> None:
    a, b = read_safetensors_header(
        write(tmp_path / "x.safetensors", HONEST | {"__metadata__": {"format": "pt"}})
    )
    assert (a.name, a.dtype, a.shape, a.size) == ("a", "F32", (2, 2), 16)
    assert (b.name, b.begin - a.begin) == ("b", 16)


LIES = {
    "past_the_end": (changed("b", data_offsets=[16, 2**40]), "shape times"),
    "truncated": (changed("b", shape=[40], data_offsets=[16, 96]), "truncated"),
    "overlap": (changed("b", data_offsets=[8, 16]), "overlaps"),
    "same_place": (changed("b", shape=[8], data_offsets=[0, 16]), "overlaps"),
    "hole": ({"a": HONEST["a"], "b": HONEST["b"] | {"data_offsets": [17, 25]}}, "hole"),
    "more_behind": ({"a": HONEST["a"]}, "follow its last"),
    "backwards": (changed("b", data_offsets=[24, 16]), "offsets"),
    "negative_offset": (changed("a", data_offsets=[-16, 0]), "offsets"),
    "three_offsets": (changed("a", data_offsets=[0, 16, 16]), "offsets"),
    "float_offset": (changed("a", data_offsets=[0, 16.0]), "offsets"),
    "true_offset": (changed("a", data_offsets=[False, 16]), "offsets"),
    "no_offsets": ({"a": {"dtype": "F32", "shape": [1]}}, "offsets"),
    "negative_shape": (changed("a", shape=[-2, -2]), "shape"),
    "huge_shape": (changed("a", shape=[2**63, 2]), "shape"),
    "lying_shape": (changed("a", shape=[2, 3]), "shape times"),
    "many_dimensions": (changed("a", shape=[1] * 9 + [4]), "shape"),
    "unknown_dtype": (changed("a", dtype="F128"), "dtype"),
    "pickled_dtype": (changed("a", dtype="object"), "dtype"),
    "dtype_no_text": (changed("a", dtype=7), "dtype"),
    "entry_no_object": ({"a": [1, 2]}, "not an object"),
    "no_object": ([1], "not a JSON object"),
    "no_json": (b"{]", "not valid JSON"),
    "no_utf8": (b'{"\xff": 1}', "not valid JSON"),
    "deep": (b"[" * 200_000, "not valid JSON"),
    "twice": (b'{"a": {"dtype":"U8","shape":[0],"data_offsets":[0,0]}, "a": 1}', "twice"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_named(lie: str, tmp_path: Path) -> None:
    header, said = LIES[lie]
    with pytest.raises(BadWeights, match=said) as caught:
        read_safetensors_header(write(tmp_path / "x.safetensors", header))
    assert "x.safetensors" in str(caught.value)
    assert caught.value.check


@pytest.mark.parametrize("length", [0, 1, 10**6, 2**63, 2**64 - 1])
def test_a_lying_header_length(length: int, tmp_path: Path) -> None:
    with pytest.raises(BadWeights):
        read_safetensors_header(write(tmp_path / "x.safetensors", HONEST, length=length))


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9])
def test_a_file_of_almost_nothing(size: int, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", 100)[:size].ljust(size, b"{"))
    with pytest.raises(BadWeights):
        read_safetensors_header(tmp_path / "x.safetensors")


def test_a_hundred_thousand_entries_are_refused(tmp_path: Path) -> None:
    empty = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    with pytest.raises(BadWeights, match="100000"):
        read_safetensors_header(
            write(tmp_path / "x.safetensors", {f"t{i}": empty for i in range(100_000)}, b"")
        )


@given(raw=st.binary(max_size=200), length=st.integers(0, 300))
def test_no_bytes_do_more_than_be_refused(
    raw: bytes, length: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(struct.pack("<Q", length) + raw)
    with suppress(BadWeights):
        read_safetensors_header(path)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "sharded", shard="100KB")


def edit_index(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    edit(index)
    (folder / INDEX).write_text(json.dumps(index))


ESCAPES = ["../out.safetensors", "/etc/passwd", "a/b.safetensors", "c:\\x.safetensors", "x.bin", "", 7, None]


@pytest.mark.parametrize("escape", ESCAPES)
def test_an_index_cannot_point_outside_of_its_folder(escape: object, sharded: Path) -> None:
    write(sharded.parent / "out.safetensors", HONEST)
    edit_index(sharded, lambda index: index["weight_map"].update({"lm_head.weight": escape}))
    with pytest.raises(BadWeights, match="outside of the folder"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("name", ["x" * 5000 + ".safetensors", "\ud800.safetensors"])
def test_an_index_that_names_what_no_file_can_be_called(name: str, sharded: Path) -> None:
    edit_index(sharded, lambda index: index["weight_map"].update({"lm_head.weight": name}))
    with pytest.raises(BadWeights, match=INDEX) as caught:
        open_checkpoint(sharded)
    assert len(str(caught.value).encode()) < 1000  # and it can be written as text


@pytest.mark.parametrize("weight_map", [None, [], {}, "x"])
def test_an_index_without_a_map(weight_map: object, sharded: Path) -> None:
    edit_index(sharded, lambda index: index.update(weight_map=weight_map))
    with pytest.raises(BadWeights):
        open_checkpoint(sharded)


def test_an_index_that_promises_too_much(sharded: Path) -> None:
    first = sorted(sharded.glob("*.safetensors"))[0].name
    edit_index(sharded, lambda index: index["weight_map"].update({"not.there": first}))
    with pytest.raises(BadWeights, match=r"not\.there"):
        open_checkpoint(sharded)


def test_a_missing_file_of_several(sharded: Path) -> None:
    victim = sorted(sharded.glob("*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(BadWeights, match=victim.name):
        open_checkpoint(sharded)


def test_a_truncated_file_is_named_with_what_to_do(sharded: Path) -> None:
    victim = sorted(sharded.glob("*.safetensors"))[1]
    victim.write_bytes(victim.read_bytes()[:-100])
    with pytest.raises(BadWeights, match="truncated") as caught:
        open_checkpoint(sharded)
    assert victim.name in str(caught.value)
    assert "again" in caught.value.check
