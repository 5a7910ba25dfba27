"""Secret sums: exact, whoever drops out, and nothing that the curious see depends on what others add."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import RemoteProtocolError
from shoal.training.federated.secret.fixed_point import decode_fixed, encode_fixed
from shoal.training.federated.secret.masks import join_secret, split_secret, stretch
from shoal.training.federated.secret.secret_sum import SecretMember, threshold_of, unmasked_sum

CONTEXT = b"run and plan"
SIZE = 8


class Round:
    """A round whose members are all here."""

    def __init__(self, count, updates=None):
        private = [X25519PrivateKey.generate() for _ in range(count)]
        self.keys = [key.public_key().public_bytes_raw() for key in private]
        self.members = [SecretMember(CONTEXT, i, self.keys, key) for i, key in enumerate(private)]
        chance = np.random.default_rng(1)
        self.plain = updates or [
            chance.integers(0, 1 << 63, SIZE).astype(np.uint64) * np.uint64(2) for _ in range(count)
        ]
        self.all = frozenset(range(count))
        self.given = [member.shares() for member in self.members]
        for sender, shares in enumerate(self.given):
            for receiver, share in enumerate(shares):
                self.members[receiver].take_share(sender, share)

    def masked(self, counted):
        return {i: self.members[i].masked(self.plain[i], 0, self.all) for i in counted}

    def sum(self, counted, answering):
        shown = {i: self.members[i].show(self.all, frozenset(counted)) for i in answering}
        return unmasked_sum(CONTEXT, 0, self.masked(counted), self.all, shown, self.keys)

    def expected(self, counted):
        return sum((self.plain[i] for i in counted), np.zeros(SIZE, np.uint64))


@settings(max_examples=8, deadline=None)
@given(st.integers(4, 7), st.data())
def test_the_sum_is_exact_whoever_drops_out_before_and_after_the_parts_are_in(count, data):
    one, needed = Round(count), threshold_of(count)
    counted = data.draw(st.permutations(range(count)))[: data.draw(st.integers(needed, count))]
    answering = data.draw(st.permutations(counted))[: data.draw(st.integers(needed, len(counted)))]
    assert (one.sum(counted, answering) == one.expected(counted)).all()


def test_fixed_point_sums_are_means_to_float_precision():
    chance = np.random.default_rng(2)
    updates = [chance.uniform(-1, 1, 1000).astype(np.float32) for _ in range(5)]
    weights = [0.1, 0.2, 0.3, 0.15, 0.25]
    total = sum(
        (encode_fixed(u, w, 3.0) for u, w in zip(updates, weights, strict=True)), np.zeros(1000, np.uint64)
    )
    expected = sum(w * u.astype(np.float64) for u, w in zip(updates, weights, strict=True))
    assert decode_fixed(total, 1.0, 3.0) == pytest.approx(expected, abs=1e-7)


def taken_off(one, masked, victim, curious):
    """What is left of a masked update when the curious have taken off all that they know of its masks: those
    in common with them, and the one of its own, whose seed is shown to all after the round.
    """
    left = masked[victim] - stretch(one.members[victim]._seed, CONTEXT, 0, SIZE)
    for spy in curious:
        common = one.members[spy]._private.exchange(_public(one.keys[victim]))
        mask = stretch(common, CONTEXT, 0, SIZE)
        left = left - mask if victim < spy else left + mask
    return left


def test_no_member_and_no_pair_of_members_learns_the_update_of_another():
    count = 6
    one = Round(count)
    masked = one.masked(one.all)
    for curious in (*combinations(range(count), 1), *combinations(range(count), 2)):
        for victim in set(range(count)) - set(curious):
            assert (taken_off(one, masked, victim, curious) != one.plain[victim]).all()
            # Its key, with which they would have the other masks, they have too few shares of.
            shares = [(spy, one.given[victim][spy][:32]) for spy in curious]
            assert len(shares) < threshold_of(count)
            assert join_secret(shares) != one.members[victim]._private.private_bytes_raw()
    # All others together do know it, as of any sum.
    assert (taken_off(one, masked, 0, range(1, count)) == one.plain[0]).all()


@pytest.mark.parametrize("count", [2, 3])
def test_of_two_or_three_there_is_no_sum_whatever_the_plan_says(count):
    """The other one would take its own part off, and have the update of the third."""
    with pytest.raises(RemoteProtocolError, match="4 are needed"):
        Round(count)
    spy = Round(5)
    with pytest.raises(RemoteProtocolError, match="4 are needed"):
        spy.members[0].masked(spy.plain[0], 0, frozenset(range(count)))
    with pytest.raises(RemoteProtocolError, match="at least 4 must count"):
        spy.members[0].show(spy.all, frozenset(range(count)))
    keys = [*spy.keys[:count], *[b""] * (5 - count)]
    member = SecretMember(CONTEXT, 0, keys, X25519PrivateKey.generate())
    with pytest.raises(RemoteProtocolError, match="4 are needed"):
        member.shares()


def _public(raw):
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

    return X25519PublicKey.from_public_bytes(raw)


def test_what_is_masked_is_as_good_as_random():
    zeros = [np.zeros(20_000, np.uint64) for _ in range(4)]
    one = Round(4, zeros)
    bits = np.unpackbits(one.masked([0])[0].view(np.uint8))
    assert abs(bits.mean() - 0.5) < 0.002


def test_a_member_shows_the_shares_of_one_list_alone():
    """Else a convener would have the seed and the key of a member by two lists, and with them its update."""
    one = Round(6)
    member = one.members[0]
    first = member.show(one.all, one.all)
    assert member.show(one.all, one.all) == first
    with pytest.raises(RemoteProtocolError, match="a second list"):
        member.show(one.all, one.all - {5})
    for count in range(4, 16):  # two lists to the honest, with two spies: one of the secrets stays unknown
        assert count + 2 < 2 * threshold_of(count)


def test_too_few_who_count_and_too_few_shares_are_refused():
    one = Round(6)
    with pytest.raises(RemoteProtocolError, match="at least 5 must count"):
        one.members[0].show(one.all, frozenset({0, 1, 2, 3}))
    with pytest.raises(RemoteProtocolError, match="4 shares of member"):
        one.sum(one.all, [0, 1, 2, 3])
    with pytest.raises(RemoteProtocolError, match="a share of 3 bytes"):
        one.members[0].take_share(1, b"abc")


def test_shares_that_were_changed_are_noticed_where_a_key_must_be_had():
    one = Round(5)
    counted = frozenset({0, 1, 2, 3})
    shown = {i: one.members[i].show(one.all, counted) for i in counted}
    shown[2][4] = bytes(32)
    with pytest.raises(RemoteProtocolError, match="do not fit"):
        unmasked_sum(CONTEXT, 0, one.masked(counted), one.all, shown, one.keys)


@pytest.mark.parametrize("key", [b"", bytes(32)])
def test_who_counts_without_a_key_brings_the_sum_to_nothing_and_its_owner_to_no_end(key):
    one = Round(5)
    counted = frozenset({0, 1, 2, 3})
    shown = {i: one.members[i].show(one.all, counted) for i in counted}
    keys = [key, *one.keys[1:]]
    with pytest.raises(RemoteProtocolError, match="member 0 has no key"):
        unmasked_sum(CONTEXT, 0, one.masked(counted), one.all, shown, keys)


def test_shares_give_the_secret_from_the_threshold_on():
    secret = bytes(range(32))
    shares = list(enumerate(split_secret(secret, 3, 5)))
    for chosen in combinations(shares, 3):
        assert join_secret(chosen) == secret
    assert join_secret(shares[:2]) != secret
