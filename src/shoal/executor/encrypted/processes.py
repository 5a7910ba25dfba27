"""The processes of both sides: a node's, which computes on ciphertexts, and a client's, which has the key."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import msgspec
import numpy as np

from shoal.errors import StepFailed
from shoal.executor.arrays import Doubles
from shoal.executor.encrypted.frames import (
    ApplyMap,
    CryptDone,
    CryptReply,
    DecryptScores,
    EncryptRows,
    LoadMap,
)
from shoal.executor.graph.framed_process import FramedProcess

PROGRAM = "shoal.executor.encrypted.child"
STARTS_WITHIN_S = 60.0
"""How much longer the first answer of a process may take."""
_replies: msgspec.msgpack.Decoder[CryptReply] = msgspec.msgpack.Decoder(CryptReply)


@dataclass(frozen=True, slots=True)
class EncryptedScores:
    """What a node has made of encrypted rows."""

    sizes: tuple[int, ...]
    """Bytes of each score's ciphertext."""
    ciphertexts: bytes
    exponent: int
    """The scores are to be multiplied by two to this power."""


class MapRunner(Protocol):
    """Computes a linear graph on encrypted rows, one request at a time; from one thread."""

    def load(self) -> None:
        """Be ready for the first request. Raises StepFailed: it cannot be computed here."""
        ...

    def run(self, sizes: tuple[int, ...], payload: bytes) -> EncryptedScores:
        """The scores of the columns in ``payload``. Raises StepFailed: as :meth:`EncryptedMapRunner.run`."""
        ...

    def close(self) -> None:
        """Compute nothing any more; from any thread."""
        ...


class EncryptedMapRunner:
    """A node's: the process is started to begin with, and again after it was lost. Close it afterwards.

    Args:
        folder: of the imported graph.
        within_s: the longest that a request may be computed.
    """

    def __init__(self, folder: Path, *, within_s: float) -> None:
        self._folder = folder
        self._within_s = within_s
        self._process: _CryptProcess | None = None
        self._closed = False
        self._ending: weakref.finalize[..., EncryptedMapRunner] | None = None

    @property
    def pid(self) -> int | None:
        """The process as it is now, if there is one."""
        running = self._process.process if self._process else None
        return running.pid if running is not None and running.poll() is None else None

    def load(self) -> None:
        """Start the process. Raises StepFailed: it does not start, or the graph cannot be loaded."""
        self._loaded()

    def run(self, sizes: tuple[int, ...], payload: bytes) -> EncryptedScores:
        """The scores of the columns in ``payload``.

        Raises:
            StepFailed: these are no ciphertexts by our parameters, it takes too much time or memory, or the
                graph cannot be loaded.
        """
        done, made = self._loaded().ask(ApplyMap(sizes), payload, self._within_s)
        if sum(done.sizes) != len(made):  # whoever has taken the process over says what he likes
            raise StepFailed("the process that computes on ciphertexts answers nonsense")
        return EncryptedScores(done.sizes, bytes(made), done.exponent)

    def close(self) -> None:
        """End the process, from any thread; what it computes now fails, and nothing is computed any more."""
        self._closed = True
        self._end()

    def _loaded(self) -> _CryptProcess:
        if self._closed:
            raise StepFailed("this node has ended")
        if self._process is None or self._process.process.poll() is not None:
            self._end()
            self._process = process = _CryptProcess()
            self._ending = weakref.finalize(self, process.end)
            try:
                process.ask(LoadMap(str(self._folder.absolute())), b"", STARTS_WITHIN_S)
            except StepFailed:
                self._end()
                raise
        return self._process

    def _end(self) -> None:
        self._process = None
        if self._ending is not None:
            self._ending()


class SecretProcess:
    """A client's: has a key of its own, for one request. Close it afterwards; the key is gone then.

    Args:
        within_s: the longest that rows are encrypted, or scores decrypted.
    """

    def __init__(self, *, within_s: float) -> None:
        self._within_s = within_s
        self._process = _CryptProcess()
        self._ending = weakref.finalize(self, self._process.end)

    def encrypt(self, rows: Doubles) -> tuple[tuple[int, ...], bytes]:
        """The columns of some rows, encrypted: the bytes of each, and all of them.

        Raises:
            StepFailed: the process was lost, or took too long.
        """
        within_s = self._within_s + STARTS_WITHIN_S
        done, made = self._process.ask(EncryptRows(len(rows)), rows.tobytes(), within_s)
        return done.sizes, bytes(made)

    def decrypt(self, sizes: Sequence[int], ciphertexts: bytes, rows: int) -> Doubles:
        """What was made of these rows: rows × scores.

        Raises:
            StepFailed: these are no ciphertexts by our parameters, or as of :meth:`encrypt`.
        """
        _, made = self._process.ask(DecryptScores(rows, tuple(sizes)), ciphertexts, self._within_s)
        if len(made) != 8 * rows * len(sizes):  # as above
            raise StepFailed("the process that decrypts answers nonsense")
        return np.frombuffer(made).reshape(rows, len(sizes))

    def close(self) -> None:
        """End the process, from any thread."""
        self._ending()


class _CryptProcess(FramedProcess[CryptReply]):
    """A process with a folder of its own for what SEAL reads and writes."""

    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="shoal-encrypted-")
        super().__init__(["-m", PROGRAM], _replies, Path(self._folder.name))

    def ask(self, asked: msgspec.Struct, payload: bytes, within_s: float) -> tuple[CryptDone, bytearray]:
        """The answer. Raises StepFailed: there is none, or it says why it is none."""
        found = self.exchange(asked, payload, within_s)
        if found is None:
            self.process.kill()  # an answer would come that nobody has asked for
            self.process.wait()
            late = "took too long" if self.late else "crashed, or filled its memory"
            raise StepFailed(f"the process that has what is encrypted {late}")
        reply, made = found
        if not isinstance(reply, CryptDone):
            raise StepFailed(reply.message)
        return reply, made

    def end(self) -> None:
        super().end()
        self._folder.cleanup()
