"""One round of a secret sum, as a member and as the owner of a part. No I/O.

Each member hides its integers by a mask of its own and by one that it has in common with each other
member, which the other subtracts. It gives every member shares of the seed of the first and of the key of
the second. When the parts are in, it is settled who counts. Then each member shows one share of each
other one: the seed's of those who count, the key's of those who have dropped out, and never both. So the
sum can be had, and no addend of it. Shares go over the channel between two members, which is encrypted
and proves both ends; so no keys for them are needed, as they are where a server carries them.

It holds against members who try to learn more, as long as fewer than ``threshold`` of them join, and,
whatever lists the convener gives to whom, as long as ``members + curious < 2 · threshold``.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from shoal.errors import RemoteProtocolError
from shoal.training.federated.secret.fixed_point import FixedPoint
from shoal.training.federated.secret.masks import (
    SECRET_BYTES,
    agreed,
    join_secret,
    split_secret,
    stretch,
)

LEAST_COUNTED = 4
"""Members of a sum: of three, any two know what the third has added."""
SHARE_BYTES = 2 * SECRET_BYTES
CURIOUS = 2
"""Members who may join and still learn nothing, also where one convenes and gives each another list."""


def threshold_of(members: int) -> int:
    """How many members must show a share: more than two thirds, and enough against ``CURIOUS`` ones.

    Never fewer than ``LEAST_COUNTED``: of fewer members there is no sum.
    """
    return max(2 * members // 3 + 1, (members + CURIOUS) // 2 + 1, LEAST_COUNTED)


class SecretMember:
    """One member in one round.

    Args:
        context: of the round and its plan.
        index: its place in the plan.
        keys: the public keys of all members, in order.
        private: of its own.
    """

    def __init__(self, context: bytes, index: int, keys: Sequence[bytes], private: X25519PrivateKey) -> None:
        self._context, self._index, self._keys, self._private = context, index, keys, private
        self.members = len(keys)
        self.threshold = threshold_of(self.members)
        self._seed = secrets.token_bytes(SECRET_BYTES)
        self._held: dict[int, bytes] = {}
        self._agreed: dict[int, bytes] = {}
        self._shown: tuple[frozenset[int], frozenset[int]] | None = None

    def shares(self) -> list[bytes]:
        """64 bytes for each member, in order: a share of the key, and one of the seed. Its own are kept.

        Raises:
            RemoteProtocolError: too few members have a key.
        """
        self._check_keys(range(self.members))
        of_key = split_secret(self._private.private_bytes_raw(), self.threshold, self.members)
        of_seed = split_secret(self._seed, self.threshold, self.members)
        found = [key + seed for key, seed in zip(of_key, of_seed, strict=True)]
        self._held[self._index] = found[self._index]
        return found

    def take_share(self, member: int, share: bytes) -> None:
        """Keep what another member gives. Raises RemoteProtocolError: it is no share."""
        if len(share) != SHARE_BYTES:
            raise RemoteProtocolError(f"a share of {len(share)} bytes, not {SHARE_BYTES}")
        self._held.setdefault(member, share)

    @property
    def held(self) -> frozenset[int]:
        """Whose shares are here."""
        return frozenset(self._held)

    def masked(self, values: FixedPoint, part: int, among: frozenset[int]) -> FixedPoint:
        """A part of its integers, hidden.

        Args:
            among: with whom it has masks in common: all whose shares enough members hold.

        Raises:
            RemoteProtocolError: a member's key is none, or too few have one.
        """
        self._check_keys(among)
        found = values + stretch(self._seed, self._context, part, values.size)
        for other in sorted(among - {self._index}):
            mask = stretch(self._secret_with(other), self._context, part, values.size)
            found = found + mask if self._index < other else found - mask
        return found

    def _check_keys(self, members: Iterable[int]) -> None:
        """Raises RemoteProtocolError: so few have keys of their own that their sum would tell of each."""
        keys = {self._keys[member] for member in members if self._keys[member]}
        if len(keys) < LEAST_COUNTED:
            raise RemoteProtocolError(f"a sum of {len(keys)} members with keys: {LEAST_COUNTED} are needed")

    def _secret_with(self, other: int) -> bytes:
        """What only another member knows, too. Raises RemoteProtocolError: it has no key."""
        if other not in self._agreed:
            try:
                self._agreed[other] = agreed(self._private, self._keys[other])
            except ValueError as error:
                raise RemoteProtocolError(f"member {other} has no key") from error
        return self._agreed[other]

    def show(self, among: frozenset[int], counted: frozenset[int]) -> dict[int, bytes]:
        """A share of 32 bytes of each member of ``among``: of the seed of who counts, else of the key.

        Once only: of another ``counted`` it says nothing any more.

        Raises:
            RemoteProtocolError: too few count, others than take part, or other lists were settled before.
        """
        if not counted <= among <= self.held or len(counted) < self.threshold:
            raise RemoteProtocolError(
                f"a sum of {len(counted)} members out of {len(among)}: at least {self.threshold} must count"
            )
        if self._shown not in (None, (among, counted)):
            raise RemoteProtocolError("a second list of who counts, after a share was shown for another")
        self._shown = among, counted
        return {
            member: share[SECRET_BYTES:] if member in counted else share[:SECRET_BYTES]
            for member, share in self._held.items()
            if member in among
        }


def unmasked_sum(
    context: bytes,
    part: int,
    masked: Mapping[int, FixedPoint],
    among: frozenset[int],
    shown: Mapping[int, Mapping[int, bytes]],
    keys: Sequence[bytes],
) -> FixedPoint:
    """The sum of a part, of the members who count.

    Args:
        masked: of each who counts, at least one, its hidden integers.
        among: who has masks in common.
        shown: what each member has shown, of each of ``among``.
        keys: the public keys of all, in order.

    Raises:
        RemoteProtocolError: too few shares were shown, they do not fit, or a key is none.
    """
    threshold = threshold_of(len(keys))
    secret = {member: _joined(member, shown, threshold) for member in among}
    arrays = list(masked.values())
    total = np.zeros_like(arrays[0])
    for array in arrays:
        total = total + array
    for member in masked:
        total = total - stretch(secret[member], context, part, total.size)
    for gone in among - set(masked):
        private = X25519PrivateKey.from_private_bytes(secret[gone])
        if private.public_key().public_bytes_raw() != keys[gone]:
            raise RemoteProtocolError(f"the shares of member {gone}'s key do not fit")
        for member in masked:
            try:
                common = agreed(private, keys[member])
            except ValueError as error:
                raise RemoteProtocolError(f"member {member} has no key") from error
            mask = stretch(common, context, part, total.size)
            # What the member has added, or subtracted, for the one who has dropped out.
            total = total - mask if member < gone else total + mask
    return total


def _joined(member: int, shown: Mapping[int, Mapping[int, bytes]], threshold: int) -> bytes:
    """The secret that enough members have shown a share of. Raises RemoteProtocolError: they are too few."""
    shares = [(index, of[member]) for index, of in sorted(shown.items()) if len(of.get(member, b"")) == 32]
    if len(shares) < threshold:
        raise RemoteProtocolError(f"{len(shares)} shares of member {member}, and {threshold} are needed")
    return join_secret(shares[:threshold])
