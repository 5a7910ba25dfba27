"""Who a peer is: a key that lasts, and signatures that prove a peer id."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID

from shoal.errors import NotAllowed, ShoalError
from shoal.net.identity import Identity, verify
from shoal.types import PeerId


def test_the_peer_id_and_the_key_file_are_libp2ps(tmp_path: Path):
    # The test vector of https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md, of go-libp2p.
    # py-libp2p 0.8 itself cannot read it: it wants the 32 bytes of the seed where the spec has 64.
    vector = bytes.fromhex(
        "080112407e0830617c4a7de83925dfb2694556b12936c477a0e1feb2e148ec9da60fee7d"
        "1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e"
    )
    path = tmp_path / "key"
    path.write_bytes(vector)
    path.chmod(0o600)
    identity = Identity.load(path)
    assert identity.encoded() == vector
    assert identity.peer == str(ID.from_pubkey(create_new_key_pair(identity.seed).public_key))


def test_an_identity_lasts_and_is_ours_alone(tmp_path: Path):
    path = tmp_path / "deep" / "identity.key"
    first = Identity.load_or_create(path)
    assert Identity.load_or_create(path) == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_two_at_once_get_the_same_identity(tmp_path: Path):
    found: list[Identity] = []

    def load() -> None:
        found.append(Identity.load_or_create(tmp_path / "key"))

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_a_key_that_others_may_read_is_refused(tmp_path: Path):
    path = tmp_path / "key"
    Identity.ephemeral().save(path)
    path.chmod(0o644)
    with pytest.raises(NotAllowed, match="others") as refused:
        Identity.load_or_create(path)
    assert "chmod 600" in refused.value.next_command


@pytest.mark.parametrize(
    "damage", [b"", b"x", b"\x08\x01\x12\x40" + bytes(63), b"\x08\x00\x12\x40" + bytes(64)]
)
def test_a_damaged_key_is_refused_and_kept(tmp_path: Path, damage: bytes):
    path = tmp_path / "key"
    path.write_bytes(damage)
    path.chmod(0o600)
    with pytest.raises(ShoalError, match="damaged"):
        Identity.load_or_create(path)
    assert path.read_bytes() == damage


def test_a_key_is_never_overwritten(tmp_path: Path):
    Identity.ephemeral().save(tmp_path / "key")
    with pytest.raises(FileExistsError):
        Identity.ephemeral().save(tmp_path / "key")


def test_the_secret_key_is_not_printed():
    identity = Identity.from_seed(b"\x07" * 32)
    assert "\\x07" not in repr(identity)


def test_only_the_peer_itself_signs_for_it():
    mine, other = Identity.ephemeral(), Identity.ephemeral()
    signature = mine.sign(b"data")
    assert len(signature) == 64
    assert verify(mine.peer, b"data", signature)
    assert not verify(mine.peer, b"date", signature)
    assert not verify(other.peer, b"data", signature)


@given(st.text(max_size=80), st.binary(max_size=80), st.binary(max_size=80))
@settings(max_examples=60, deadline=None)
def test_nonsense_is_no_signature(peer: str, data: bytes, signature: bytes):
    assert not verify(PeerId(peer), data, signature)
    assert not verify(Identity.from_seed(bytes(32)).peer, data, signature)
