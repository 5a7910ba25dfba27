"""A checkpoint of tuning replaces what it has written itself, and is whole whenever a run is killed."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from shoal.client.tuning import checkpoint
from shoal.client.tuning.checkpoint import TuningState, check_is_of_tuning, checkpoint_folder, restore, save
from shoal.client.tuning.factors import TunedAdapter, TunedLayers
from shoal.errors import OutOfResources, UsageError
from shoal.types import Digest

BASE = Digest("sha256:" + "0" * 64)
RUN = {"rank": 1}


def adapter(filled=0.0):
    made = TunedAdapter(TunedLayers("model.layers", {"q_proj": (2, 3)}, 2), rank=1, alpha=1, seed=0)
    for half in made.parameters:
        half.data.fill_(filled)
    return made


def saved(folder, number):
    made = adapter(float(number))
    optimizer = torch.optim.AdamW(made.parameters)
    for half in made.parameters:
        half.grad = torch.full_like(half, number)
    optimizer.step()
    for half in made.parameters:
        half.data.fill_(number)
    save(folder, made, optimizer, TuningState(number, RUN, ((number, 0.5),)), base=BASE, base_name="fish")


def restored(folder):
    """The step, and the numbers of the adapter and of the optimizer's moments."""
    made = adapter()
    optimizer = torch.optim.AdamW(made.parameters)
    state = restore(folder, made, optimizer, RUN)
    assert state is not None
    moments = {round(float(optimizer.state[half]["exp_avg"].max()), 3) for half in made.parameters}
    return state.step, {float(half.detach().max()) for half in made.parameters}, moments


def test_what_others_have_beside_and_inside_the_folder_stays(tmp_path):
    out = tmp_path / "out"
    for name in ("out.new", "out.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("mine")
    saved(out, 1)
    (out / "notes.txt").write_text("mine too")
    saved(out, 2)
    assert (out / "notes.txt").read_text() == "mine too"
    assert [(tmp_path / name / "thesis.txt").read_text() for name in ("out.new", "out.old")] == ["mine"] * 2
    assert {path.name for path in out.iterdir()} == {*checkpoint.FILES, "notes.txt"}
    assert restored(out) == (2, {2.0}, {0.2})


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("moved", range(len(checkpoint.FILES)))
def test_a_run_that_is_killed_while_files_are_moved_has_the_new_checkpoint(
    tmp_path, monkeypatch, moved, first
):
    out, left = tmp_path / "out", [moved]
    if not first:
        saved(out, 1)
    honest = Path.replace

    def dies(path, target):
        if path.name in checkpoint.FILES:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
        return honest(path, target)

    monkeypatch.setattr(Path, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        saved(out, 2)
    monkeypatch.undo()
    check_is_of_tuning(out)
    assert restored(out) == (2, {2.0}, {0.2})
    assert not (out / checkpoint.NEW).exists()


@pytest.mark.parametrize("name", [checkpoint.OPTIMIZER, checkpoint.WEIGHTS])
def test_a_run_that_is_killed_while_it_writes_has_the_old_checkpoint(tmp_path, monkeypatch, name):
    out, honest = tmp_path / "out", checkpoint._write
    saved(out, 1)

    def dies(path, data):
        if path.name == name:
            raise KeyboardInterrupt
        honest(path, data)

    monkeypatch.setattr(checkpoint, "_write", dies)
    with pytest.raises(KeyboardInterrupt):
        saved(out, 2)
    monkeypatch.undo()
    assert restored(out) == (1, {1.0}, {0.1})
    saved(out, 3)
    assert restored(out) == (3, {3.0}, {0.3})


def test_a_disk_that_is_full_is_told_as_that_and_the_checkpoint_before_stays(tmp_path):
    out = tmp_path / "out"
    saved(out, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        with pytest.raises(OutOfResources, match="is full: the checkpoint needs more") as told:
            saved(out, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "--out" in told.value.check
    assert restored(out) == (1, {1.0}, {0.1})
    saved(out, 3)
    assert restored(out) == (3, {3.0}, {0.3})


def test_a_first_checkpoint_that_was_cut_short_may_begin_again(tmp_path):
    (tmp_path / checkpoint.NEW).mkdir()
    (tmp_path / checkpoint.NEW / checkpoint.MARKER).write_text(checkpoint.WRITING)
    check_is_of_tuning(tmp_path)
    assert restore(tmp_path, adapter(), torch.optim.AdamW(adapter().parameters), RUN) is None
    saved(tmp_path, 1)
    assert restored(tmp_path)[0] == 1


def test_a_folder_of_the_same_name_that_is_not_ours_is_refused_and_left_alone(tmp_path):
    theirs = tmp_path / checkpoint.NEW / "thesis.txt"
    theirs.parent.mkdir()
    theirs.write_text("mine")
    for write in (check_is_of_tuning, lambda folder: saved(folder, 1)):
        with pytest.raises(UsageError, match="is in the way"):
            write(tmp_path)
    assert theirs.read_text() == "mine"


def test_a_folder_is_looked_up_before_it_is_written_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert checkpoint_folder(Path()) == tmp_path.resolve()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is no folder"):
        checkpoint_folder(Path("file"))
    with pytest.raises(UsageError, match="no checkpoint of shoal tune"):
        check_is_of_tuning(checkpoint_folder(Path()))
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UsageError):
        check_is_of_tuning(checkpoint_folder(Path("loop")))
