"""However large the swarm, a peer hears as many words a second."""

from __future__ import annotations

import pytest

from shoal.swarm.announcement import MAX_LIFETIME_S
from shoal.swarm.anti_entropy import MAX_PEERS
from shoal.swarm.gossip_rate import PART_PEERS, STEADY_PEERS, lifetime_s, parts, refresh_s


@pytest.mark.parametrize("peers", [0, 1, 3, STEADY_PEERS])
def test_in_a_small_swarm_the_settings_hold(peers):
    assert (refresh_s(10.0, peers), lifetime_s(30.0, peers)) == (10.0, 30.0)


@pytest.mark.parametrize("peers", [50, 100, 200, 400, 1000])
def test_words_a_second_stay_the_same(peers):
    assert peers / refresh_s(10.0, peers) == pytest.approx(STEADY_PEERS / 10.0)


@pytest.mark.parametrize("peers", [1, 20, 500, MAX_PEERS])
@pytest.mark.parametrize(("announce_s", "expiry_s"), [(10.0, 30.0), (1.0, 3.0), (100.0, 300.0)])
def test_a_word_outlives_two_that_were_lost_and_is_never_longer_than_allowed(peers, announce_s, expiry_s):
    assert 3 * refresh_s(announce_s, peers) <= lifetime_s(expiry_s, peers) * 1.001
    assert lifetime_s(expiry_s, peers) <= MAX_LIFETIME_S


@pytest.mark.parametrize(("peers", "expected"), [(0, 1), (PART_PEERS, 1), (PART_PEERS + 1, 2), (1000, 8)])
def test_a_comparison_is_of_a_bounded_part(peers, expected):
    assert parts(peers) == expected
