"""Encryption in this process, where starting one for each request would take a second."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from shoal.executor.arrays import Doubles
from shoal.executor.encrypted.ckks import EncryptedMap, SecretKey
from shoal.executor.encrypted.processes import EncryptedScores
from shoal.executor.graph.segments import ImportedGraph


def parts(sizes: Sequence[int], payload: bytes) -> list[bytes]:
    """The ciphertexts of a payload."""
    ends = np.cumsum([0, *sizes])
    return [payload[begin:end] for begin, end in pairwise(ends)]


class InProcessMap:
    """Computes a linear graph on encrypted rows: a :class:`~shoal.executor.encrypted.processes.MapRunner`."""

    def __init__(self, folder: Path, *, within_s: float) -> None:
        self._scratch = TemporaryDirectory()
        self._map = EncryptedMap(ImportedGraph(folder).linear().matrix, Path(self._scratch.name))
        self.asked: list[bytes] = []
        """What came."""

    def load(self) -> None:
        """It is."""

    def run(self, sizes: tuple[int, ...], payload: bytes) -> EncryptedScores:
        self.asked.append(payload)
        made = self._map(parts(sizes, payload))
        return EncryptedScores(tuple(map(len, made)), b"".join(made), self._map.exponent)

    def close(self) -> None:
        self._scratch.cleanup()


class InProcessKey:
    """Has a key: what :class:`~shoal.executor.encrypted.processes.SecretProcess` is."""

    def __init__(self, *, within_s: float) -> None:
        self._scratch = TemporaryDirectory()
        self._key = SecretKey(Path(self._scratch.name))

    def encrypt(self, rows: Doubles) -> tuple[tuple[int, ...], bytes]:
        made = self._key.encrypt(rows)
        return tuple(map(len, made)), b"".join(made)

    def decrypt(self, sizes: Sequence[int], ciphertexts: bytes, rows: int) -> Doubles:
        return self._key.decrypt(parts(sizes, ciphertexts), rows)

    def close(self) -> None:
        self._scratch.cleanup()
