"""Private swarms: what the secret is turned into, and the two ways in which it closes the door.

The libp2p port is under a pre-shared key as in the pnet spec
(https://github.com/libp2p/specs/blob/master/pnet/Private-Networks-PSK-V1.md): each side sends a 24-byte
nonce, then everything, the first handshake included, under XSalsa20. A stranger sees noise, and what he
sends is noise to us. py-libp2p's own pnet uses Salsa20 with an 8-byte nonce, which no other
implementation understands; hence this one.

The direct carrier mixes the secret into the Noise handshake itself (Noise XXpsk0, section 9 of the
Noise specification): a stranger's first message already fails, before we have said who we are.
"""

from __future__ import annotations

import hashlib
import os
import struct

from Crypto.Cipher import Salsa20
from libp2p.abc import IRawConnection, ISecureConn
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.exceptions import HandshakeFailure
from libp2p.security.noise.patterns import PatternXX
from libp2p.security.noise.transport import Transport
from libp2p.transport.upgrader import TransportUpgrader
from noise.connection import NoiseConnection

from shoal.errors import LocalProtocolError

NONCE = 24
_FIRST = b"\x13/multistream/1.0.0\n"
_SIGMA = struct.unpack("<4I", b"expand 32-byte k")
_PROLOGUE = b"shoal direct 1"


def pnet_key(secret: bytes) -> bytes:
    """The 32-byte pre-shared key of the libp2p port; other implementations read it in hex, as a swarm key."""
    return hashlib.blake2b(secret, digest_size=32, person=b"shoal pnet").digest()


def noise_key(secret: bytes) -> bytes:
    """The 32-byte pre-shared key of the direct carrier."""
    return hashlib.blake2b(secret, digest_size=32, person=b"shoal noise").digest()


def lan_key(secret: bytes) -> bytes:
    """The 32-byte key under which members announce themselves on a local network."""
    return hashlib.blake2b(secret, digest_size=32, person=b"shoal mdns").digest()


class SwarmNoise(Transport):
    """The Noise transport of the direct carrier, with the swarm's secret in the handshake if it has one."""

    secret: bytes | None = None

    def get_pattern(self) -> PatternXX:
        """The XX pattern, or XXpsk0 in a private swarm."""
        if self.secret is None:
            return PatternXX(self.local_peer, self.libp2p_privkey, self.noise_privkey, prologue=_PROLOGUE)
        pattern = _PatternXXpsk0(self.local_peer, self.libp2p_privkey, self.noise_privkey, prologue=_PROLOGUE)
        pattern.psk = noise_key(self.secret)
        return pattern


class _PatternXXpsk0(PatternXX):
    psk: bytes

    def create_noise_state(self, prologue: bytes | None = None) -> NoiseConnection:
        self.protocol_name = b"Noise_XXpsk0_25519_ChaChaPoly_SHA256"
        state = super().create_noise_state(prologue)
        state.set_psks(psk=self.psk)
        return state


class ProtectedUpgrader(TransportUpgrader):
    """Puts every connection under the pre-shared key before anything is said on it."""

    key: bytes

    async def upgrade_security(
        self, raw_conn: IRawConnection, is_initiator: bool, peer_id: ID | None = None
    ) -> ISecureConn:
        """As the base class, on a connection that only members can read."""
        return await super().upgrade_security(ProtectedConnection(raw_conn, self.key), is_initiator, peer_id)


class ProtectedConnection(RawConnection):
    """A raw connection under XSalsa20, a stream each way."""

    def __init__(self, inner: IRawConnection, key: bytes) -> None:
        super().__init__(inner, inner.is_initiator)
        self._inner = inner
        self._key = key
        self._reading: Salsa20.Salsa20Cipher | None = None
        self._writing: Salsa20.Salsa20Cipher | None = None
        self._seen = 0

    async def write(self, data: bytes) -> None:
        """Send ``data``, after our nonce the first time."""
        if self._writing is not None:
            await self._inner.write(self._writing.encrypt(data))
            return
        nonce = os.urandom(NONCE)
        self._writing = xsalsa20(self._key, nonce)
        await self._inner.write(nonce + self._writing.encrypt(data))

    async def read(self, n: int | None = None) -> bytes:
        """Up to ``n`` bytes, after the peer's nonce the first time; ``b""`` when it has closed."""
        if self._reading is None:
            nonce = b""
            while len(nonce) < NONCE:
                part = await self._inner.read(NONCE - len(nonce))
                if not part:
                    return b""
                nonce += part
                if len(nonce) >= len(_FIRST) and nonce.startswith(_FIRST):
                    raise HandshakeFailure("the peer is not in a private swarm")
            self._reading = xsalsa20(self._key, nonce)
        data = self._reading.decrypt(await self._inner.read(n))
        self._expect(data)
        return data

    def _expect(self, data: bytes) -> None:
        """Both sides begin with multistream's name; anything else was sealed under another secret."""
        # A stream cipher has no tag: without this, what another secret sealed would be read as noise.
        expected = _FIRST[self._seen : self._seen + len(data)]
        if data[: len(expected)] != expected:
            raise HandshakeFailure("the peer is in another swarm, or has another secret")
        self._seen += len(expected)

    async def close(self) -> None:
        """Close the connection below."""
        await self._inner.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        """Where the peer connects from."""
        return self._inner.get_remote_address()


def xsalsa20(key: bytes, nonce: bytes) -> Salsa20.Salsa20Cipher:
    """A stream cipher for a 32-byte key and a 24-byte nonce (Bernstein 2011, "Extending the Salsa20 nonce").

    Raises:
        LocalProtocolError: key or nonce have another length.
    """
    if len(key) != 32 or len(nonce) != NONCE:
        raise LocalProtocolError(f"XSalsa20 with a key of {len(key)} and a nonce of {len(nonce)} bytes")
    return Salsa20.new(key=_hsalsa20(key, nonce[:16]), nonce=nonce[16:])


def _hsalsa20(key: bytes, nonce: bytes) -> bytes:
    k, n, s = struct.unpack("<8I", key), struct.unpack("<4I", nonce), _SIGMA
    x = [s[0], *k[:4], s[1], *n, s[2], *k[4:], s[3]]
    for _ in range(10):
        for a, b, c, d in _COLUMNS + _ROWS:
            x[b] ^= _rotate(x[a] + x[d], 7)
            x[c] ^= _rotate(x[b] + x[a], 9)
            x[d] ^= _rotate(x[c] + x[b], 13)
            x[a] ^= _rotate(x[d] + x[c], 18)
    return struct.pack("<8I", *(x[i] for i in (0, 5, 10, 15, 6, 7, 8, 9)))


_COLUMNS = ((0, 4, 8, 12), (5, 9, 13, 1), (10, 14, 2, 6), (15, 3, 7, 11))
_ROWS = ((0, 1, 2, 3), (5, 6, 7, 4), (10, 11, 8, 9), (15, 12, 13, 14))


def _rotate(value: int, bits: int) -> int:
    value &= 0xFFFFFFFF
    return ((value << bits) | (value >> (32 - bits))) & 0xFFFFFFFF
