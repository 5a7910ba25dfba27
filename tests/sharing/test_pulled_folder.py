"""What has come of a model: only what is right is taken, and a kill loses nothing that was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from shoal.models.checkpoint.checkpoint import open_checkpoint
from shoal.models.checkpoint.digest import compute_digest
from shoal.models.checkpoint.manifest import HASH
from shoal.models.checkpoint.parts import layout, missing_parts
from shoal.sharing.pulled_folder import MAP, PARTIAL, PulledFolder
from tests.sharing.conftest import HeldModel

Chunk = Callable[[int, int], bytes]


def fill(folder: PulledFolder, whole: HeldModel, items: list[int], most: int = 1 << 30) -> int:
    """Put what is missing, at most so many chunks; how many there were."""
    missing = folder.missing(items)
    put = 0
    for number, chunks in missing.items():
        if whole.manifest.items[number].chunks > 1:
            assert folder.put_hashes(number, whole.shared.hashes_piece(number, 0))
        for index in chunks:
            if put == most:
                return put
            assert folder.put_chunk(number, index, whole.shared.chunk(number, index))
            put += 1
    folder.finish_empty(items)
    return put


def make(path: Path, whole: HeldModel) -> PulledFolder:
    folder = PulledFolder(path, whole.manifest)
    shutil.copy(whole.model.path / "config.json", path)
    return folder


def test_what_came_whole_is_the_same_model(tmp_path: Path, whole: HeldModel) -> None:
    folder = make(tmp_path, whole)
    everything = list(range(len(whole.manifest.items)))
    fill(folder, whole, everything)
    assert folder.missing(everything) == {}
    pulled = open_checkpoint(tmp_path)
    assert not missing_parts(pulled.stored)
    assert compute_digest(pulled) == whole.model.digest
    for name, entry in open_checkpoint(whole.model.path).tensors.items():
        other = pulled.tensors[name]
        assert (
            other.file.read_bytes()[other.begin :][: other.size]
            == entry.file.read_bytes()[entry.begin : entry.begin + entry.size]
        )
    assert not list(tmp_path.glob(f"*{PARTIAL}")) + list(tmp_path.glob(f"*{MAP}"))


def test_a_last_chunk_that_two_peers_send_at_once_is_taken_from_both(
    tmp_path: Path, whole: HeldModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, last = make(tmp_path, whole), whole.items("model.layers.1.up")[0]
    items = sorted(folder.whole([last]))
    count = sum(map(len, folder.missing(items).values()))
    fill(folder, whole, items, count - 1)
    ((number, (index,)),) = folder.missing(items).items()
    data, sync = whole.shared.chunk(number, index), os.fsync
    second: list[Future[bool]] = []
    with ThreadPoolExecutor(1) as other:

        def slow(descriptor: int) -> None:
            second.append(other.submit(folder.put_chunk, number, index, data))
            wait(second, 0.3)  # by now it stands where the first one is not yet in its place
            sync(descriptor)

        monkeypatch.setattr(os, "fsync", slow)
        assert folder.put_chunk(number, index, data)
        assert [chunk.result(10) for chunk in second] == [True]
    assert folder.put_chunk(number, index, data)
    assert folder.missing(items) == {}
    assert not list(tmp_path.glob(f"*{PARTIAL}")) + list(tmp_path.glob(f"*{MAP}"))


def test_a_block_is_whole_without_the_others(tmp_path: Path, whole: HeldModel) -> None:
    folder = make(tmp_path, whole)
    fill(folder, whole, whole.items("model.layers.1."))
    pulled = open_checkpoint(tmp_path)
    here = [name for name, entry in pulled.tensors.items() if not missing_parts([entry])]
    assert sorted(here) == sorted(name for name in pulled.tensors if name.startswith("model.layers.1."))
    assert set(pulled.tensors) == set(open_checkpoint(whole.model.path).tensors)


def test_what_came_is_read_by_the_library_for_safetensors_too(tmp_path: Path, whole: HeldModel) -> None:
    from safetensors import safe_open

    folder = make(tmp_path, whole)
    fill(folder, whole, whole.items("model.layers.2."))
    (file,) = tmp_path.glob("part-*.safetensors")
    with (
        safe_open(file, framework="np") as opened,
        safe_open(whole.model.path / "model.safetensors", framework="np") as original,
    ):
        for name in set(opened.keys()):
            assert (opened.get_tensor(name) == original.get_tensor(name)).all()


def test_a_wrong_chunk_is_not_taken(tmp_path: Path, whole: HeldModel, chunk_of: Chunk) -> None:
    folder = PulledFolder(tmp_path, whole.manifest)
    up = whole.items("model.layers.0.up")[0]
    right = chunk_of(up, 0)
    assert not folder.put_chunk(up, 0, right), "nothing is right before the hashes are known"
    assert not folder.put_hashes(up, bytes(3 * HASH))
    assert not folder.put_hashes(up, whole.shared.hashes_piece(up, 0)[:-1])
    assert folder.put_hashes(up, whole.shared.hashes_piece(up, 0))
    for wrong in (b"", right[:-1], right + b"x", bytes([right[0] ^ 1]) + right[1:], chunk_of(up, 1)):
        assert not folder.put_chunk(up, 0, wrong)
    assert folder.put_chunk(up, 0, right)
    norm = whole.items("norm")[0]
    assert not folder.put_chunk(norm, 0, bytes(256))
    assert folder.put_chunk(norm, 0, chunk_of(norm, 0))


@pytest.mark.parametrize("came", [0, 1, 3, 5])
def test_after_a_kill_only_what_had_not_come_is_missing(came: int, tmp_path: Path, whole: HeldModel) -> None:
    """Nothing is closed and nothing flushed, as when a process is killed."""
    block = whole.items("model.layers.3.")
    total = sum(whole.manifest.items[number].chunks for number in block)
    fill(PulledFolder(tmp_path, whole.manifest), whole, block, most=came)
    again = PulledFolder(tmp_path, whole.manifest)
    assert sum(map(len, again.missing(block).values())) == total - came
    assert fill(again, whole, block) == total - came
    assert again.missing(block) == {}


def test_what_the_disk_has_lost_is_missing_again(tmp_path: Path, whole: HeldModel) -> None:
    """After a loss of power the map may say more than is there."""
    block = whole.items("model.layers.0.")
    fill(PulledFolder(tmp_path, whole.manifest), whole, block, most=4)
    (partial,) = tmp_path.glob(f"*{PARTIAL}")
    (part,) = (part for part in layout(whole.manifest) if part.items[0] == block[0])
    with partial.open("r+b") as stream:
        stream.seek(part.begins[0] + 1000)
        stream.write(bytes(10))
    again = PulledFolder(tmp_path, whole.manifest)
    total = sum(whole.manifest.items[number].chunks for number in block)
    assert sum(map(len, again.missing(block).values())) == total - 3
    fill(again, whole, block)
    assert again.missing(block) == {}
