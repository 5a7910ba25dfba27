"""Invite codes: whole ones give back the swarm, and others say what is wrong with them."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import BadInvite
from shoal.swarm import invite
from shoal.swarm.invite import MAX_CODE, read_invite, write_invite
from shoal.swarm.membership import Membership, create

PEER = "12D3KooWGbkv2Ev5EZaQuGWbvHpJnGMNPpgKPMKU1Y6DXA1rWvY5"
ADDRESS = f"/ip4/192.168.1.20/tcp/4001/p2p/{PEER}"

names = st.from_regex(r"[a-z0-9][a-z0-9-]{0,31}", fullmatch=True).filter(lambda name: name != "public")
addresses = st.builds(
    lambda host, port: f"/ip4/{host}/tcp/{port}/p2p/{PEER}", st.ip_addresses(v=4), st.integers(1, 65535)
)
memberships = st.builds(
    Membership, names, st.binary(min_size=32, max_size=32), st.lists(addresses, max_size=16).map(tuple)
)


@given(memberships)
def test_an_invite_gives_back_the_swarm_it_was_made_of(swarm: Membership) -> None:
    assert read_invite(write_invite(swarm)) == swarm


@given(memberships, st.data())
def test_white_space_line_breaks_and_capitals_do_not_matter(swarm: Membership, data: st.DataObject) -> None:
    code = write_invite(swarm).upper()
    width = data.draw(st.integers(1, len(code)))
    lines = [code[i : i + width] for i in range(0, len(code), width)]
    assert read_invite("  \n" + " \r\n\t".join(lines) + " ") == swarm


def test_letters_that_look_alike_are_read_as_what_was_meant() -> None:
    code = write_invite(create("home", [ADDRESS]))
    body = code.removeprefix("shoal1-")
    assert not set(body) & set("ilou")
    assert read_invite("shoal1-" + body.replace("0", "O").replace("1", "l")) == read_invite(code)


def test_an_invite_is_short_enough_to_read_and_to_scan() -> None:
    assert len(write_invite(create("home", [ADDRESS]))) < 220
    assert (
        len(write_invite(create("a" * 32, [f"/ip6/2001:db8::{i:x}/tcp/4001/p2p/{PEER}" for i in range(16)])))
        < MAX_CODE
    )


@given(memberships, st.data())
def test_an_invite_cut_short_says_so(swarm: Membership, data: st.DataObject) -> None:
    code = write_invite(swarm)
    cut = data.draw(st.integers(len("shoal1-"), len(code) - 2))
    with pytest.raises(BadInvite, match="cut short"):
        read_invite(code[:cut])


@given(memberships, st.data())
def test_one_changed_character_is_noticed(swarm: Membership, data: st.DataObject) -> None:
    code = write_invite(swarm)
    at = data.draw(st.integers(len("shoal1-") + 4, len(code) - 2))
    other = data.draw(st.sampled_from([c for c in "0123456789abcdefghjkmnpqrstvwxyz" if c != code[at]]))
    with pytest.raises(BadInvite, match="checksum"):
        read_invite(code[:at] + other + code[at + 1 :])


@given(
    st.text(max_size=300) | st.text("0123456789abcdefghjkmnpqrstvwxyz", max_size=300).map("shoal1-".__add__)
)
def test_whatever_is_pasted_gives_a_swarm_or_a_bad_invite(text: str) -> None:
    with pytest.raises(BadInvite) as caught:
        read_invite(text)
    assert caught.value.exit_code == 5
    assert caught.value.check
    assert caught.value.next_command


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("", "no invite"),
        ("https://example.org/invite", "no invite"),
        ("shoal2-00000000", "version 2"),
        ("shoal1-", "cut short"),
        ("shoal1-uuuuuuuu", "characters"),
        ("shoal1-" + "0" * 5000, "longer"),
        ("shoal1-" + "0" * 16, "checksum"),
    ],
)
def test_a_bad_invite_names_what_is_wrong(code: str, says: str) -> None:
    with pytest.raises(BadInvite, match=says):
        read_invite(code)


def forge(body: bytes) -> str:
    """A code with a right length and checksum around any body."""
    data = len(body).to_bytes(2, "big") + body
    data += invite._checksum(data)
    return "shoal1-" + base64.b32encode(data).decode().rstrip("=").translate(invite._TO_CROCKFORD)


def deflated(data: bytes) -> bytes:
    deflate = invite.zlib.compressobj(9, wbits=-15, zdict=invite._HABITUAL)
    return deflate.compress(data) + deflate.flush()


def packed(*fields: object) -> str:
    return forge(deflated(invite.msgspec.msgpack.encode(fields)))


@pytest.mark.parametrize(
    "code",
    [
        forge(b"not deflated at all"),
        forge(deflated(b"\0" * 1_000_000)),
        forge(deflated(b"\x91" * 8000)),
        packed("../../etc/passwd", b"x" * 32, []),
        packed("home", b"x" * 31, []),
        packed("home", b"x" * 32, ["not an address"]),
        packed("home", b"x" * 32, [f"/ip4/1.2.3.4/tcp/1\x1b[2J/p2p/{PEER}"]),
        packed("home", b"x" * 32, [ADDRESS] * 17),
    ],
    ids=["noise", "bomb", "deep", "path", "short secret", "no address", "escape", "too many"],
)
def test_a_forged_invite_is_refused_whatever_it_holds(code: str) -> None:
    with pytest.raises(BadInvite):
        read_invite(code)
