"""The rows of one request, encrypted by a key that lives no longer than the request."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import trio

from shoal.errors import RemoteProtocolError, StepFailed, UsageError
from shoal.executor.arrays import Array, Doubles
from shoal.executor.encrypted.parameters import ERROR, PARAMETERS, SLOTS
from shoal.executor.encrypted.processes import EncryptedScores, SecretProcess
from shoal.types import PeerId

MOST_SCORE = 1 + 2.0**-20
"""Of honest scores, before they are scaled back."""


@dataclass(frozen=True, slots=True)
class Encryption:
    """How the rows of a request were encrypted, and what that costs."""

    parameters: str
    sent_bytes: int
    """Ciphertexts that went to the peer."""
    error: float
    """How far a score may be at the most from what it is without encryption, before what follows it."""


class EncryptedRows:
    """Rows that a node computes on without seeing them. Close it afterwards.

    Args:
        array: rows × columns, finite.
        within_s: the longest that they are encrypted, or what was made of them decrypted.

    Raises:
        UsageError: there are too many of them, or a number is NaN or infinite.
    """

    def __init__(self, array: Array, within_s: float) -> None:
        if not 1 <= len(array) <= SLOTS:
            raise UsageError(
                f"{len(array)} rows are to be encrypted, and at least 1 and at most {SLOTS} go at a time",
                check="ask for fewer rows at a time",
            )
        rows = array.astype(np.float64)
        if not np.isfinite(rows).all():
            raise UsageError("a number that is NaN or infinite cannot be encrypted", check="check the inputs")
        # A power of two that only this side knows. The node adds its constants times the last column, so that
        # they are scaled too.
        self._exponent = math.frexp(max(1.0, float(np.abs(rows).max())))[1]
        self._rows = np.ldexp(np.hstack([rows, np.ones((len(rows), 1))]), -self._exponent)
        self._within_s = within_s
        self._process: SecretProcess | None = None
        self._encrypted: tuple[tuple[int, ...], bytes] = (), b""

    async def encrypted(self) -> tuple[tuple[int, ...], bytes]:
        """The columns, encrypted: the bytes of each, and all of them. By a new key, where an answer could not
        be decrypted.

        Raises:
            StepFailed: they cannot be encrypted here.
        """
        if self._process is None:
            self._process = await trio.to_thread.run_sync(partial(SecretProcess, within_s=self._within_s))
            encrypt = partial(self._process.encrypt, self._rows)
            self._encrypted = await trio.to_thread.run_sync(encrypt, abandon_on_cancel=True)
        return self._encrypted

    async def decrypted(self, made: EncryptedScores, peer: PeerId) -> tuple[Doubles, Encryption]:
        """The scores that a peer has computed, rows × scores.

        Raises:
            RemoteProtocolError: the peer gave what cannot be decrypted.
        """
        process, rows = self._process, len(self._rows)
        if process is None:
            raise StepFailed("nothing was encrypted")
        try:
            decrypt = partial(process.decrypt, made.sizes, made.ciphertexts, rows)
            scores = await trio.to_thread.run_sync(decrypt, abandon_on_cancel=True)
        except StepFailed as error:
            self.close()  # nobody knows what has become of the process that has read it
            raise RemoteProtocolError(f"{peer}: what it computed cannot be decrypted: {error}") from error
        # Rows are below 1 here, and so are the weights of a score in all.
        if not (np.abs(scores) <= MOST_SCORE).all():
            self.close()
            raise RemoteProtocolError(f"{peer}: what it computed cannot be decrypted to scores of these rows")
        exponent = self._exponent + made.exponent
        with np.errstate(over="ignore"):
            error, scores = float(np.ldexp(ERROR, exponent)), np.ldexp(scores, exponent)
        return scores, Encryption(PARAMETERS, len(self._encrypted[1]), error)

    def close(self) -> None:
        """Forget the key."""
        if self._process is not None:
            self._process.close()
            self._process = None
