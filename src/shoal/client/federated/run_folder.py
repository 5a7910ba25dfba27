"""The folder of a member: its key, the run's terms, the shared state, and the adapter in it.

``member.key`` is its identity in the run, ``run.terms`` what the starter has signed, ``shared.safetensors``
weights and momentum with the round that they begin, and ``adapter/`` the adapter as PEFT reads it, with the
checkpoint of its optimizer. ``updates.sent`` counts updates with noise, for epsilon, and
``own-momentum.safetensors`` is what a member of a run by DeMo keeps to itself. Each is written whole.
One process at a time takes part from it: two with one identity would count the updates of both as one's.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from shoal.errors import BadWeights, RemoteProtocolError, UsageError
from shoal.net.identity import Identity, verify
from shoal.training.federated.means import UpdateVector
from shoal.training.federated.outer import SharedState
from shoal.training.federated.statements import TermsStatement, read_statement
from shoal.training.federated.terms import FederatedTerms, run_of
from shoal.whole_file import write_whole
from shoal.wire.federating import MAX_ROUNDS

KEY, TERMS, SHARED, ADAPTER = "member.key", "run.terms", "shared.safetensors", "adapter"
SPENT, MOMENTUM, LOCK = "updates.sent", "own-momentum.safetensors", ".member.lock"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where a member keeps what it goes on from."""

    path: Path

    @property
    def adapter(self) -> Path:
        return self.path / ADAPTER

    def identity(self) -> Identity:
        """The member's key, made if there is none. Raises NotAllowed, ShoalError: it cannot be used."""
        self._check()
        return Identity.load_or_create(self.path / KEY)

    @contextmanager
    def held(self) -> Generator[None]:
        """Let no other process take part from this folder until the block ends.

        Raises:
            UsageError: another one does, or the folder cannot be written.
        """
        self._check()
        lock = FileLock(self.path / LOCK, blocking=False, thread_local=False)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise UsageError(
                f"another process takes part from {self.path}",
                check="wait for it, or name another folder with --out: each member has its own",
            ) from error
        except OSError as error:
            raise UsageError(
                f"{self.path} cannot be written: {error.strerror or error}",
                check="name another folder with --out",
            ) from error
        try:
            yield
        finally:
            lock.release()

    def terms(self) -> bytes | None:
        """The run's signed terms; ``None`` where none are kept."""
        self._check()
        path = self.path / TERMS
        return path.read_bytes() if path.exists() else None

    def keep_terms(self, raw: bytes) -> None:
        """Raises UsageError: another run's are here. OSError: they cannot be written."""
        kept = self.terms()
        if kept is not None and kept != raw:
            raise UsageError(
                f"{self.path} belongs to another run, {run_of(kept).hex()[:16]}…",
                check="name another folder with --out",
            )
        if kept is None:
            write_whole(self.path / TERMS, raw, replace=True)

    def spent(self) -> int:
        """How many updates with noise were sent. Raises BadWeights: the file is damaged."""
        path = self.path / SPENT
        try:
            return max(0, int(path.read_text())) if path.exists() else 0
        except ValueError as error:
            raise BadWeights(
                f"{path} is damaged ({error})",
                check="write the number of rounds that this member has taken part in into it",
            ) from error

    def keep_spent(self, count: int) -> None:
        """Raises OSError: it cannot be written."""
        write_whole(self.path / SPENT, str(count).encode(), replace=True)

    def keep_momentum(self, momentum: UpdateVector) -> None:
        """Raises OSError: it cannot be written."""
        write_whole(self.path / MOMENTUM, save({"momentum": momentum}), replace=True)

    def momentum(self, size: int) -> UpdateVector | None:
        """What was kept, float32 ``[size]``; ``None`` where nothing was.

        Raises:
            BadWeights: the file is damaged.
        """
        path = self.path / MOMENTUM
        if not path.exists():
            return None
        try:
            with safe_open(path, "numpy") as opened:
                kept = cast(np.ndarray, opened.get_tensor("momentum"))
            if kept.shape != (size,) or kept.dtype != np.float32 or not np.isfinite(kept).all():
                raise ValueError("another size, or no numbers")
        except (SafetensorError, ValueError) as error:
            raise BadWeights(
                f"{path} is damaged ({error})", check="remove it: the member then begins with no momentum"
            ) from error
        return kept

    def keep_state(self, round: int, state: SharedState) -> None:
        """Raises OSError: it cannot be written."""
        tensors = {"weights": state.weights, "momentum": state.momentum}
        write_whole(self.path / SHARED, save(tensors, {"round": str(round)}), replace=True)

    def state(self, size: int) -> tuple[int, SharedState] | None:
        """The round that comes next, and what it begins with; ``None`` before the first.

        Raises:
            BadWeights: the file is damaged.
        """
        path = self.path / SHARED
        if not path.exists():
            return None
        try:
            with safe_open(path, "numpy") as opened:
                round = int((opened.metadata() or {})["round"])
                parts = [cast(np.ndarray, opened.get_tensor(name)) for name in ("weights", "momentum")]
            state = SharedState.read(b"".join(part.astype("<f4").tobytes() for part in parts), size)
            if not 0 <= round <= MAX_ROUNDS or any(part.shape != (size,) for part in parts):
                raise ValueError("another size or round")
        except (SafetensorError, RemoteProtocolError, ValueError, KeyError) as error:
            raise BadWeights(
                f"{path} is damaged ({error})",
                check="remove it: the adapter then comes from other members, or the run begins anew",
            ) from error
        return round, state

    def _check(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path} is no folder", check="name another with --out")


def read_run_terms(raw: bytes) -> FederatedTerms:
    """The terms of a run, as they are signed.

    Raises:
        RemoteProtocolError: they are none, or not signed by whom they say.
        UsageError: they do not go together.
    """
    statement = read_statement(raw, verify)
    if not isinstance(statement, TermsStatement):
        raise RemoteProtocolError("a statement that is not the terms of a run")
    statement.terms.check()
    return statement.terms
