"""What every test stands on: a suite that runs in the background runs as in the foreground, beside others."""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from shoal.models.store.local_model import LocalModel
    from shoal.testing.natlab.lab import NatLab

LONGEST = (
    "processes/test_releases.py",
    "processes/test_exact.py",
    "processes/test_seq2seq.py",
    "processes/test_tuning.py",
    "install/test_wheel.py",
    "processes/test_swarm.py",
)
"""Files of tests that boot processes, of more than half a minute each."""

# Read when torch is imported, here and in every process that a test starts. A thread of OpenMP that waits for
# the next product looks for it for milliseconds, which is right where it has a core to itself; beside other
# tests it takes the core of those that compute. The numbers are the same.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell ignores Ctrl-C for what it starts in the background, and every process that a test starts would
    # inherit that. Those must hear of the signals that tests send them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # the same, as nohup does
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where only tests with a marker run, files without it are not imported, which takes half a minute."""
    if " or " in config.option.markexpr:  # what the other side of it wants may be in any file
        return None
    wanted = config.option.markexpr.partition(" ")[0]
    if wanted not in {"swarm", "alone"} or collection_path.suffix != ".py":
        return None
    return f"mark.{wanted}" not in collection_path.read_text("utf-8") or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first: where several are run at a time, none of those is left for the end."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(LONGEST)))


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """What tests and libraries are made of stays: it is looked through for garbage once, not in each test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def handlers_of_logs() -> Iterator[None]:
    """A command that ran in this process has its log's handler on a stderr that ends with its test."""
    before = logging.root.handlers[:]
    levels = {logger: logger.level for logger in (logging.root, logging.getLogger("shoal"))}
    yield
    logging.root.handlers[:] = [handler for handler in logging.root.handlers if handler in before]
    for logger, level in levels.items():
        logger.setLevel(level)


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LocalModel]:
    """A family's checkpoint, in several shards, as the store knows it. It is nobody's to change.

    Written and described once in a run: describing it starts two processes.
    """
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # the workers' common folder

    def find(family: str) -> LocalModel:
        from shoal.models.store.store import ModelStore
        from shoal.testing.checkpoints import write_checkpoint

        # Of these, hidden states are compared, some within bounds, which are those of usual weights.
        usual = {"initializer_range": 0.02} if family == "llama" else {}
        folder = root / "families" / family
        folder.parent.mkdir(exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.exists():
                write_checkpoint(folder.with_suffix(".part"), family, shard="300KB", **usual).rename(folder)
            return ModelStore(root / "families/store").resolve(str(folder))

    return find


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a PostgreSQL server, one for all processes of a run."""
    from tests.postgres import shared_server

    base = tmp_path_factory.getbasetemp()
    return shared_server(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)


@pytest.fixture(scope="session")
def nat_lab() -> type[NatLab]:
    """Makes labs of networks, each ``with nat_lab(parse_sites("cone,sym")) as lab``. Only root can.

    Where it counts, the programs that root needs for it must be there.
    """
    from shoal.errors import NotAllowed, ShoalError
    from shoal.testing.natlab.lab import NatLab
    from shoal.testing.natlab.programs import check_programs

    try:
        check_programs()
    except NotAllowed as error:
        pytest.skip(error.message)
    except ShoalError as error:
        reason = f"{error.message}: scripts/setup.sh tests"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return NatLab
