"""Which cores a rank is kept on."""

from __future__ import annotations

from pathlib import Path

from shoal.executor.parallel.numa import numa_nodes, share

ALL = frozenset(range(8))
TWO = [frozenset({0, 1, 2, 3}), frozenset({4, 5, 6, 7})]


def test_each_rank_has_the_cores_of_its_nodes() -> None:
    assert share(TWO, ALL, 0, 2) == {0, 1, 2, 3}
    assert share(TWO, ALL, 1, 2) == {4, 5, 6, 7}


def test_nodes_are_shared_out_to_the_last() -> None:
    nodes = [frozenset({n}) for n in range(5)]
    assert [share(nodes, ALL, rank, 2) for rank in range(2)] == [{0, 1}, {2, 3, 4}]


def test_cores_that_we_may_not_use_do_not_count() -> None:
    assert share(TWO, frozenset({1, 5, 6}), 1, 2) == {5, 6}
    assert share(TWO, frozenset({4, 5}), 0, 2) is None  # one memory for both: they go where they like


def test_more_ranks_than_nodes_go_where_they_like() -> None:
    assert share(TWO, ALL, 0, 4) is None
    assert share([], ALL, 0, 2) is None


def test_nodes_are_read_in_order_as_linux_lists_them(tmp_path: Path) -> None:
    for number, cores in {0: "0-1,8\n", 2: "2\n", 10: "3-5\n", 11: "\n"}.items():
        (tmp_path / f"node{number}").mkdir()
        (tmp_path / f"node{number}" / "cpulist").write_text(cores)
    assert numa_nodes(tmp_path) == [{0, 1, 8}, {2}, {3, 4, 5}, set()]
    assert numa_nodes(tmp_path / "none") == []
