"""How many threads a forward takes by default."""

from __future__ import annotations

import os
from pathlib import Path

from shoal.executor.cores import cores_of, usable_cores


def test_threads_that_share_a_core_count_once(tmp_path: Path) -> None:
    for cpu in range(8):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    assert cores_of(set(range(8)), tmp_path) == 4
    assert cores_of({0, 4, 5}, tmp_path) == 2, "only what this process may use"


def test_where_the_system_does_not_tell_each_counts(tmp_path: Path) -> None:
    assert cores_of({0, 1, 5}, tmp_path) == 3


def test_there_is_at_least_one() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
