"""Masks that cancel, as one member adds what another subtracts, and Shamir's shares of secrets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shoal.training.federated.secret.fixed_point import FixedPoint

SECRET_BYTES = 32
HALF = 16
"""What is shared at a time: Shamir's shares are over a field of 2¹²⁸ elements."""


def stretch(secret: bytes, context: bytes, part: int, size: int) -> FixedPoint:
    """``size`` integers that follow from a secret: to who lacks it they are as good as drawn by chance.

    Args:
        context: of the round; another one gives other integers.
        part: of the vector.
    """
    info = b"shoal secret sum 1\0" + context + part.to_bytes(4, "big")
    key = HKDF(SHA256(), SECRET_BYTES, salt=None, info=info).derive(secret)
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(8 * size))
    return np.frombuffer(stream, "<u8").astype(np.uint64)


def agreed(private: X25519PrivateKey, public: bytes) -> bytes:
    """The secret of two members. Raises ValueError: the other key is none."""
    return private.exchange(X25519PublicKey.from_public_bytes(public))


def split_secret(secret: bytes, threshold: int, members: int) -> list[bytes]:
    """A share of 32 bytes for each member, in order: ``threshold`` of them give the secret, fewer nothing."""
    halves = [secret[:HALF], secret[HALF:]]
    shares = [dict(Shamir.split(threshold, members, half, False)) for half in halves]
    return [shares[0][index + 1] + shares[1][index + 1] for index in range(members)]


def join_secret(shares: Sequence[tuple[int, bytes]]) -> bytes:
    """The secret of as many shares as the threshold is, each with its member's place."""
    first = Shamir.combine([(index + 1, share[:HALF]) for index, share in shares], False)
    return first + Shamir.combine([(index + 1, share[HALF:]) for index, share in shares], False)
