"""An announcement is believed when its peer signed it, now, for a while, with values that can be."""

from __future__ import annotations

import math
import pickle

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import RemoteProtocolError
from shoal.net.identity import Identity, verify
from shoal.swarm.announcement import (
    CLOCK_SKEW_S,
    MAX_ANNOUNCEMENT,
    Announcement,
    AskedPrice,
    Served,
    ServedAdapter,
    candidate,
    numerics_of,
    operator_of,
    seal,
    unseal,
)
from shoal.trust.operator import OperatorStatement, state
from shoal.types import Numerics, PeerId

NOW = 1_000_000.0
ALICE, MALLORY = Identity.ephemeral(), Identity.ephemeral()


def served(**changes) -> Served:
    first = Served("tiny", "sha256:" + "a" * 64, 30, 576, 2048, 49152, 0, 10, "fp32", 4096, 4096, 0, 2.5)
    return msgspec.structs.replace(first, **changes)


def announcement(**changes) -> Announcement:
    first = Announcement(ALICE.peer, 1, NOW, NOW + 30, ("/ip4/192.0.2.1/tcp/1",), (), served(), "shoal/0.1")
    return msgspec.structs.replace(first, **changes)


def test_what_was_sealed_is_unsealed():
    assert unseal(seal(announcement(), ALICE.sign), NOW, verify) == announcement()


def test_a_thin_link_makes_each_row_take_its_time_and_an_unknown_one_says_nothing():
    thin = candidate(PeerId("a"), served(hidden_size=4096, link_bytes_s=2.5e6), None)
    assert thin.sending_s == pytest.approx(4096 * 2 / 2.5e6)
    assert candidate(PeerId("a"), served(), None).sending_s == 0
    # Whoever says that it has hardly any makes itself dear, not endless.
    assert candidate(PeerId("a"), served(link_bytes_s=1e-300), None).sending_s < 10
    with pytest.raises(RemoteProtocolError):
        unseal(seal(announcement(served=served(link_bytes_s=math.nan)), ALICE.sign), NOW, verify)


def test_a_usual_one_is_small():
    assert len(seal(announcement(), ALICE.sign)) < 500


def test_one_from_before_numerics_had_a_name_is_read_and_no_route_goes_over_it():
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(served(numerics="n1/fp32/auto/modules")))
    later = Served.__struct_fields__[::-1].index("numerics") + 1  # that one, and what came after it
    old = msgspec.convert(fields[:-later], Served)
    assert (old.numerics, numerics_of(old)) == ("", None)
    assert not Numerics("fp32", "auto", "any").admits(numerics_of(old))


def test_one_of_a_format_that_only_a_later_release_knows_is_read_and_no_route_goes_over_it():
    later = announcement(served=served(format="w3a9", numerics="n1/w3a9/auto/rows"))
    read = unseal(seal(later, ALICE.sign), NOW, verify)
    assert read.served is not None
    assert (read.served.format, numerics_of(read.served)) == ("w3a9", None)
    assert numerics_of(served(format="w3a9", numerics="n1/int8/auto/rows")) is None


def test_a_price_is_part_of_it_and_one_from_before_there_were_prices_asks_nothing():
    asked = AskedPrice(2_000, 500, b"p" * 20, 31337, b"c" * 20)
    read = unseal(seal(announcement(served=served(price=asked)), ALICE.sign), NOW, verify)
    assert read.served is not None
    assert read.served.price == asked
    assert candidate(PeerId("a"), read.served, None).price == 2_000
    # Its window is worth 4096 tokens of its blocks at the most.
    assert [msgspec.structs.replace(asked, window=w).bounded(3).window for w in (7, 1 << 62)] == [7, 24]
    assert msgspec.structs.replace(asked, amount=1).bounded(3).window == 1
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(served(price=asked)))
    assert msgspec.convert(fields[: Served.__struct_fields__.index("price")], Served).price is None
    for broken in (msgspec.structs.replace(asked, amount=0), msgspec.structs.replace(asked, payee=b"short")):
        with pytest.raises(RemoteProtocolError, match="not an announcement"):
            unseal(seal(announcement(served=served(price=broken)), ALICE.sign), NOW, verify)


def test_an_operator_is_part_of_it_and_one_from_before_there_were_operators_has_none():
    operator = Identity.ephemeral()
    statement = state(operator.peer, ALICE.peer, NOW, 1, operator.sign)
    raw = seal(announcement(served=served(operator=statement)), ALICE.sign)
    assert operator_of(unseal(raw, NOW, verify)) == statement
    assert len(raw) < 700
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(served(operator=statement)))
    assert msgspec.convert(fields[: Served.__struct_fields__.index("operator")], Served) == served()


def test_an_operator_who_has_not_signed_for_that_peer_or_no_more_has_it_refused():
    operator, bob = Identity.ephemeral(), Identity.ephemeral()
    refused = {
        "has not signed for the peer": state(operator.peer, bob.peer, NOW, 1, operator.sign),
        f"operator {operator.peer} has not signed": state(operator.peer, ALICE.peer, NOW, 1, MALLORY.sign),
        "expired": state(operator.peer, ALICE.peer, NOW - 2 * 86400, 1, operator.sign),
        "holds only": state(operator.peer, ALICE.peer, NOW + 86400, 1, operator.sign),
        "not an announcement": OperatorStatement(operator.peer, 0, 1, b"short"),
    }
    for why, statement in refused.items():
        with pytest.raises(RemoteProtocolError, match=why):
            unseal(seal(announcement(served=served(operator=statement)), ALICE.sign), NOW, verify)


@pytest.mark.parametrize(
    "numerics", ["n1/int8", "n1/int8/auto/rows/more", "N1/int8/auto/rows", "n1//auto/rows"]
)
def test_nonsense_for_numerics_is_refused(numerics):
    with pytest.raises(RemoteProtocolError, match="not an announcement"):
        unseal(seal(announcement(served=served(numerics=numerics)), ALICE.sign), NOW, verify)


def test_numerics_of_a_later_version_are_not_taken_for_ours():
    assert numerics_of(served(numerics="n2/fp32/auto/modules")) is None


def test_to_promise_no_bits_is_for_sessions_and_graphs_and_not_for_nodes_of_language_models():
    assert numerics_of(served(numerics="n1/fp32/auto/any")) is None
    assert numerics_of(served(numerics="n1/fp32/auto/any", kind="graph")) == Numerics("fp32", "auto", "any")


def test_one_signed_by_another_is_refused():
    with pytest.raises(RemoteProtocolError, match="has not signed"):
        unseal(seal(announcement(), MALLORY.sign), NOW, verify)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_one_that_was_changed_on_the_way_is_refused(place, change):
    data = bytearray(seal(announcement(), ALICE.sign))
    data[place % len(data)] ^= change
    with pytest.raises(RemoteProtocolError):
        unseal(bytes(data), NOW, verify)


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("future", {"issued": NOW + CLOCK_SKEW_S + 1, "expires": NOW + CLOCK_SKEW_S + 31}),
        ("expired", {"issued": NOW - 31, "expires": NOW - 1}),
        ("live", {"expires": NOW + 10_000}),
        ("live", {"expires": NOW}),
        ("numbers", {"issued": math.nan}),
        ("numbers", {"expires": math.inf}),
        ("span", {"served": served(end=31)}),
        ("span", {"served": served(start=10)}),
        ("capacity", {"served": served(tokens_free=5000)}),
        ("not an announcement", {"served": served(step_ms=math.inf)}),
        ("not an announcement", {"served": served(step_ms=-1.0)}),
        ("not an announcement", {"served": served(device="x" * 65)}),
        ("not an announcement", {"served": served(device_memory=-1)}),
        ("not an announcement", {"served": served(tokens=-1)}),
        ("not an announcement", {"served": served(share=1.1)}),
        ("not an announcement", {"served": served(share=-0.1)}),
        ("not an announcement", {"served": served(share=math.nan)}),
        ("not an announcement", {"served": served(token_joules=-1.0)}),
        ("not an announcement", {"served": served(token_joules=math.nan)}),
        ("not an announcement", {"served": served(format="int 3")}),
        ("not an announcement", {"served": served(digest="md5:1")}),
        ("not an announcement", {"libp2p": ("/ip4/192.0.2.1/tcp/1",) * 17}),
        ("not an announcement", {"sequence": -1}),
    ],
)
def test_one_that_lies_is_refused(what, changes):
    with pytest.raises(RemoteProtocolError, match=what):
        unseal(seal(announcement(**changes), ALICE.sign), NOW, verify)


def test_a_clock_a_little_ahead_is_forgiven():
    ahead = announcement(issued=NOW + 5, expires=NOW + 35)
    assert unseal(seal(ahead, ALICE.sign), NOW, verify) == ahead


def test_an_oversized_one_is_refused_unread():
    with pytest.raises(RemoteProtocolError, match="at most"):
        unseal(bytes(MAX_ANNOUNCEMENT + 1), NOW, verify)


def test_pickle_is_not_an_announcement():
    with pytest.raises(RemoteProtocolError):
        unseal(pickle.dumps(["peer"]), NOW, verify)


@given(st.binary(max_size=200))
def test_any_other_bytes_are_refused(data):
    with pytest.raises(RemoteProtocolError):
        unseal(data, NOW, verify)


@pytest.mark.parametrize(
    ("name", "taken"), [("pirate", True), ("facade", True), ("deadbeef", False), ("0" * 64, False)]
)
def test_no_adapter_is_called_as_a_digest_begins(name, taken):
    adapters = (ServedAdapter(name, "sha256:" + "b" * 64),)
    data = seal(announcement(served=served(adapters=adapters)), ALICE.sign)
    if taken:
        assert unseal(data, NOW, verify).served.adapters == adapters
    else:
        with pytest.raises(RemoteProtocolError, match="not an announcement"):
            unseal(data, NOW, verify)
