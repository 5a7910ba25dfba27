"""What `shoal infer` reads and writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from shoal.cli.graph.files import read_inputs, write_outputs
from shoal.errors import UsageError


def test_arrays_are_read_from_every_kind_of_file(tmp_path: Path) -> None:
    one, two = np.arange(4, dtype=np.int16).reshape(2, 2), np.ones(3, np.float32)
    np.save(tmp_path / "one.npy", one)
    np.savez(tmp_path / "both.npz", one=one, two=two)
    (tmp_path / "list.json").write_text("[[1, 2.5]]")
    (tmp_path / "both.json").write_text(json.dumps({"one": [1], "two": [2]}))
    assert np.array_equal(read_inputs([f"x={tmp_path}/one.npy"])["x"], one)
    assert read_inputs([f"{tmp_path}/both.npz"]).keys() == {"one", "two"}
    assert np.array_equal(read_inputs([f"two={tmp_path}/both.npz"])["two"], two)
    assert read_inputs([f"x={tmp_path}/list.json", f"{tmp_path}/both.json"]) == {
        "x": [[1, 2.5]],
        "one": [1],
        "two": [2],
    }


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["x=nothing.npy"], "there is no file"),
        (["one.npy"], "which input is it"),
        (["x=one.txt"], "of a kind that is not read"),
        (["x=bad.npy"], "cannot be read"),
        (["x=bad.npz"], "cannot be read"),
        (["x=bad.json"], "cannot be read"),
        (["x=pickled.npy"], "cannot be read"),
        (["x=one.npy", "x=one.npy"], "given twice"),
        (["z=both.npz"], "no array named 'z'"),
    ],
)
def test_what_cannot_be_read_is_told(
    given: list[str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("one.npy", np.zeros(1))
    np.savez("both.npz", x=np.zeros(1), y=np.zeros(1))
    np.save("pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    for name in ("one.txt", "bad.npy", "bad.npz", "bad.json"):
        Path(name).write_bytes(b"{")
    with pytest.raises(UsageError, match=why):
        read_inputs(given)


def test_outputs_are_written_as_they_are(tmp_path: Path) -> None:
    outputs = {"a": np.arange(3), "b": np.ones((2, 2), np.float16)}
    outputs |= {"file": np.zeros(1), "allow_pickle": np.array(2)}
    write_outputs(tmp_path / "out.npz", outputs)
    with np.load(tmp_path / "out.npz") as read:
        assert all(np.array_equal(read[name], array) for name, array in outputs.items())
    write_outputs(tmp_path / "out.npy", {"a": outputs["a"]})
    assert np.array_equal(np.load(tmp_path / "out.npy"), outputs["a"])
    with pytest.raises(UsageError, match="4 outputs do not fit"):
        write_outputs(tmp_path / "out.npy", outputs)
