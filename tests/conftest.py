"""What every test stands on: a suite that runs in the background runs as in the foreground, beside others."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from shoal.models.store.local_model import LocalModel
    from shoal.testing.natlab.lab import NatLab

LONGEST = (
    "page/test_page.py",
    "processes/test_releases.py",
    "install/test_wheel.py",
    "clients/test_examples.py",
    "processes/test_tuning.py",
    "install/test_canary.py",
    "bench/test_processes.py",
    "processes/test_exact.py",
)
"""Files of tests that boot processes, of more than half a minute each."""
TOGETHER = ("tests/page/", "tests/clients/")
"""Folders whose files look at the same processes: one worker has all of a folder's, which start once."""

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
    """Where only tests with a marker run, files without it are not imported, nor what their folder brings."""
    if " or " in config.option.markexpr:  # what the other side of it wants may be in any file
        return None
    wanted = config.option.markexpr.partition(" ")[0]
    if wanted not in {"swarm", "alone"}:
        return None
    if collection_path.is_dir():
        return not any(is_marked(file, wanted) for file in collection_path.rglob("test_*.py")) or None
    return (collection_path.suffix == ".py" and not is_marked(collection_path, wanted)) or None


def is_marked(file: Path, wanted: str) -> bool:
    return f"mark.{wanted}" in file.read_text("utf-8")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first: where several are run at a time, none of those is left for the end."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(LONGEST)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where a file's tests run in one worker, those of a folder that shares its processes do."""
    if config.option.dist != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByProcesses(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return next((folder for folder in TOGETHER if nodeid.startswith(folder)), file)

    return ByProcesses(config, log)


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


@pytest.fixture(scope="session", autouse=True)
def described_once() -> Iterator[None]:
    """Where an answer ends, as the same files of a tokenizer tell it, is asked of them once.

    That takes two processes, for a tokenizer and for its template, and is most of what it takes to describe
    a small checkpoint. Almost all of those have the same tokenizer.
    """
    from shoal.models.store import describe
    from shoal.models.text.tokenizer.stored import AS_STORED, FORCED, MISTRAL

    load, told = describe.TextCodec.load, dict[object, SimpleNamespace]()
    others = ("config.json", "generation_config.json", "gguf.json", "model.safetensors.index.json")

    def load_once(folder: Path) -> SimpleNamespace:
        try:
            config = json.loads((folder / "config.json").read_bytes())
            kind = str(config.get("model_type"))
            by = (FORCED.get(kind), kind in AS_STORED, kind in MISTRAL, str(config.get("tokenizer_class")))
            files = [file for end in ("json", "jinja", "txt", "model") for file in folder.rglob(f"*.{end}")]
            read = {str(f.relative_to(folder)): f.read_bytes() for f in files if f.name not in others}
        except (OSError, ValueError, AttributeError, RecursionError):
            return SimpleNamespace(end_tokens=load(folder).end_tokens)
        asked = (*by, *sorted((name, sha256(data).digest()) for name, data in read.items()))
        if asked not in told:
            told[asked] = SimpleNamespace(end_tokens=load(folder).end_tokens)
        return told[asked]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(describe, "TextCodec", SimpleNamespace(load=load_once))
        yield


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LocalModel]:
    """A family's checkpoint, in several shards, as the store knows it. It is nobody's to change.

    Written and described once in a run.
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
