"""Who we are: an ed25519 key pair. A peer id is its public key, so that a signature proves a peer.

Peer ids: https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md. The key file is libp2p's
protobuf form of a private key, as go-libp2p and js-libp2p write it.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import base58
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from shoal.errors import NotAllowed, ShoalError
from shoal.types import PeerId
from shoal.whole_file import write_whole

_PUBLIC_PREFIX = bytes.fromhex("002408011220")
"""Identity multihash of 36 bytes: protobuf PublicKey{Type: Ed25519 (1), Data: 32 bytes}."""
_PRIVATE_PREFIX = bytes.fromhex("08011240")
"""Protobuf PrivateKey{Type: Ed25519 (1), Data: 64 bytes: seed and public key}."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A key pair and the peer id that follows from it."""

    seed: bytes = field(repr=False)
    """The 32 bytes of the private key."""
    peer: PeerId

    @classmethod
    def from_seed(cls, seed: bytes) -> Identity:
        """The identity of a 32-byte private key."""
        public = Ed25519PrivateKey.from_private_bytes(seed).public_key()
        raw = public.public_bytes(Encoding.Raw, PublicFormat.Raw)
        return cls(seed, peer_of(raw))

    @classmethod
    def ephemeral(cls) -> Identity:
        """A new identity that is kept nowhere."""
        key = Ed25519PrivateKey.generate()
        return cls.from_seed(key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption()))

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Read a key file.

        Raises:
            FileNotFoundError: there is none.
            NotAllowed: others on this machine may read it.
            ShoalError: it is damaged, or holds another kind of key.
        """
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise NotAllowed(
                f"{path} may be read by others on this machine: whoever reads it can pass for this node",
                check="find out who could read it; if in doubt, make a new key",
                next_command=f"chmod 600 {path}",
            )
        data = path.read_bytes()
        seed = data[len(_PRIVATE_PREFIX) : len(_PRIVATE_PREFIX) + 32]
        identity = cls.from_seed(seed) if len(seed) == 32 else None
        if identity is None or data != identity.encoded():
            raise ShoalError(
                f"{path} is no ed25519 key, or is damaged",
                check="restore it from a copy, or move it away: then a new key is made, with a new peer id",
                next_command="shoal identity create",
            )
        return identity

    @classmethod
    def load_or_create(cls, path: Path) -> Identity:
        """Read a key file, or make one with mode 0600; two processes at once get the same key.

        Raises:
            NotAllowed, ShoalError: as ``load``.
        """
        try:
            return cls.load(path)
        except FileNotFoundError:
            pass
        try:
            cls.ephemeral().save(path)
        except FileExistsError:
            return cls.load(path)
        return cls.load(path)

    def save(self, path: Path) -> None:
        """Write the key file whole, mode 0600 from the first byte.

        Raises:
            FileExistsError: there is one; it is never overwritten.
        """
        write_whole(path, self.encoded(), replace=False)

    def encoded(self) -> bytes:
        """libp2p's protobuf form of the private key."""
        public = Ed25519PrivateKey.from_private_bytes(self.seed).public_key()
        return _PRIVATE_PREFIX + self.seed + public.public_bytes(Encoding.Raw, PublicFormat.Raw)

    def sign(self, data: bytes) -> bytes:
        """An ed25519 signature, 64 bytes."""
        return Ed25519PrivateKey.from_private_bytes(self.seed).sign(data)


def peer_of(public: bytes) -> PeerId:
    """The peer id of an ed25519 key, 32 bytes."""
    return PeerId(base58.b58encode(_PUBLIC_PREFIX + public).decode())


def public_key(peer: PeerId) -> bytes:
    """The 32 bytes of the ed25519 key that a peer id holds.

    Raises:
        ValueError: it holds none.
    """
    raw = base58.b58decode(peer)
    if len(raw) != len(_PUBLIC_PREFIX) + 32 or not raw.startswith(_PUBLIC_PREFIX):
        raise ValueError(f"{peer[:64]!r} is no peer id with an ed25519 key")
    return raw[len(_PUBLIC_PREFIX) :]


@lru_cache(maxsize=1024)
def verify(peer: PeerId, data: bytes, signature: bytes) -> bool:
    """Whether ``peer`` signed ``data``. Any nonsense is simply not a signature.

    What was checked last is remembered: gossip is judged before it is passed on and when it is taken in.
    """
    try:
        raw = base58.b58decode(peer)
    except ValueError:
        return False
    if len(raw) != len(_PUBLIC_PREFIX) + 32 or not raw.startswith(_PUBLIC_PREFIX):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(raw[len(_PUBLIC_PREFIX) :]).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True
