"""JSON of strangers: its size, its depth and the number of its values are looked at before it is parsed."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import BadWeights
from shoal.models.checkpoint.checkpoint import CONFIG, INDEX, open_checkpoint, read_config
from shoal.models.checkpoint.headers import read_safetensors_header
from shoal.models.store.generation import read_generation_config
from shoal.models.untrusted.bounded_json import MAX_DEPTH, parse
from shoal.testing.checkpoints import write_checkpoint

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(value=JSON, encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]))
def test_what_is_small_is_read_as_ever(value: object, encoding: str) -> None:
    for ascii_only in (True, False):
        raw = json.dumps(value, ensure_ascii=ascii_only).encode(encoding, "surrogatepass")
        assert parse(raw, values=10_000) == value


@given(raw=st.binary(max_size=60) | st.text('[]{}":,\\ a1', max_size=60).map(str.encode))
@settings(max_examples=500)
def test_any_bytes_are_read_as_ever_or_refused(raw: bytes) -> None:
    try:
        expected: object = json.loads(raw)
    except ValueError:
        with pytest.raises(ValueError):
            parse(raw, values=1000)
    else:
        assert repr(parse(raw, values=1000)) == repr(expected)  # NaN is not equal to itself


@pytest.mark.parametrize("open_, close", [("[", "]"), ('{"a":', "}")])
def test_the_depth_is_bounded_and_brackets_in_texts_are_none(open_: str, close: str) -> None:
    nested = open_ * MAX_DEPTH + "1" + close * MAX_DEPTH
    assert parse(nested.encode(), values=1000)
    with pytest.raises(ValueError, match="nested"):
        parse((open_ + nested + close).encode(), values=1000)
    assert parse(json.dumps(["[" * 900, '\\"' + "{" * 900]).encode(), values=10_000)


HOSTILE: dict[str, Callable[[], bytes]] = {
    "200,000 deep": lambda: b'{"model_type":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "two million keys": lambda: (
        b'{"model_type":"llama",' + b",".join(b'"k%d":1' % i for i in range(2_000_000)) + b"}"
    ),
    "a million lists": lambda: b'{"model_type":[' + b"[]," * 1_000_000 + b"0]}",
    "a text that never ends": lambda: b'{"a' + b'\\"' * 4_000_000,
    "a number that never ends": lambda: b'{"a":' + b"9" * 1_000_000 + b"}",
    "zeros": lambda: bytes(8 << 20),
    "large": lambda: b" " * (65 << 20),
}


@cache
def hostile(what: str) -> bytes:
    return HOSTILE[what]()


READ: dict[str, Callable[[Path, bytes], object]] = {}


def reader(name: str) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    def remember(read: Callable[[Path], object]) -> Callable[[Path], object]:
        def whole(folder: Path, raw: bytes) -> object:
            prefix = struct.pack("<Q", len(raw)) if name == "model.safetensors" else b""
            (folder / name).write_bytes(prefix + raw)
            return read(folder)

        READ[name] = whole
        return read

    return remember


reader("config.json")(read_config)
reader("generation_config.json")(read_generation_config)
reader(INDEX)(open_checkpoint)
reader("model.safetensors")(lambda folder: read_safetensors_header(folder / "model.safetensors"))


@pytest.mark.parametrize("file", READ)
@pytest.mark.parametrize("what", HOSTILE)
def test_each_file_that_means_harm_is_refused_within_a_second(file: str, what: str, tmp_path: Path) -> None:
    folder, raw = write_checkpoint(tmp_path / "model"), hostile(what)
    began = time.thread_time()
    with pytest.raises(BadWeights) as caught:
        READ[file](folder, raw)
    assert time.thread_time() - began < 1
    assert file in caught.value.message and caught.value.check


def test_a_config_with_many_labels_is_read(tmp_path: Path) -> None:
    labels = {str(i): f"a label, the {i}th" for i in range(21_841)}
    config = {"model_type": "llama", "id2label": labels, "label2id": {v: k for k, v in labels.items()}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert len(read_config(tmp_path)["id2label"]) == 21_841
    assert CONFIG.values > 4 * 21_841


def test_a_number_of_labels_of_which_no_table_can_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "num_labels": 2**31 - 1}))
    with pytest.raises(BadWeights, match="num_labels"):
        read_config(tmp_path)
