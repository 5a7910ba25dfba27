"""What we and the processes that encrypt, or compute on what is encrypted, say to each other."""

from __future__ import annotations

import msgspec


class LoadMap(msgspec.Struct, tag="load"):
    """Load an imported graph that is linear."""

    folder: str


class ApplyMap(msgspec.Struct, tag="apply"):
    """Compute its scores; payload: the columns, each a ciphertext of so many bytes."""

    sizes: tuple[int, ...]


class EncryptRows(msgspec.Struct, tag="encrypt"):
    """Encrypt rows, by the key that this process has; payload: rows × columns in float64."""

    rows: int


class DecryptScores(msgspec.Struct, tag="decrypt"):
    """Decrypt what was made of these rows; payload: the scores, each a ciphertext."""

    rows: int
    sizes: tuple[int, ...]


class CryptDone(msgspec.Struct, tag="done"):
    """Loaded; or payload: ciphertexts, or rows × scores in float64."""

    sizes: tuple[int, ...] = ()
    exponent: int = 0


class CryptFault(msgspec.Struct, tag="fault"):
    """It cannot be done."""

    message: str


CryptRequest = LoadMap | ApplyMap | EncryptRows | DecryptScores
CryptReply = CryptDone | CryptFault
