"""The swarms a machine is in, and the codes that bring others in."""

from __future__ import annotations

import base64
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.config import Paths, Settings
from shoal.errors import BadInvite, NotAllowed, NotRunning, UsageError
from shoal.swarm import membership
from shoal.swarm.membership import (
    MAX_CODE,
    Membership,
    create,
    from_code,
    load,
    load_or_create,
    save,
    to_code,
)

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
    assert from_code(to_code(swarm)) == swarm


@given(memberships, st.data())
def test_white_space_line_breaks_and_capitals_do_not_matter(swarm: Membership, data: st.DataObject) -> None:
    code = to_code(swarm).upper()
    width = data.draw(st.integers(1, len(code)))
    lines = [code[i : i + width] for i in range(0, len(code), width)]
    assert from_code("  \n" + " \r\n\t".join(lines) + " ") == swarm


def test_letters_that_look_alike_are_read_as_what_was_meant() -> None:
    code = to_code(create("home", [ADDRESS]))
    body = code.removeprefix("shoal1-")
    assert not set(body) & set("ilou")
    assert from_code("shoal1-" + body.replace("0", "O").replace("1", "l")) == from_code(code)


def test_an_invite_is_short_enough_to_read_and_to_scan() -> None:
    assert len(to_code(create("home", [ADDRESS]))) < 220
    assert (
        len(to_code(create("a" * 32, [f"/ip6/2001:db8::{i:x}/tcp/4001/p2p/{PEER}" for i in range(16)])))
        < MAX_CODE
    )


@given(memberships, st.data())
def test_an_invite_cut_short_says_so(swarm: Membership, data: st.DataObject) -> None:
    code = to_code(swarm)
    cut = data.draw(st.integers(len("shoal1-"), len(code) - 2))
    with pytest.raises(BadInvite, match="cut short"):
        from_code(code[:cut])


@given(memberships, st.data())
def test_one_changed_character_is_noticed(swarm: Membership, data: st.DataObject) -> None:
    code = to_code(swarm)
    at = data.draw(st.integers(len("shoal1-") + 4, len(code) - 2))
    other = data.draw(st.sampled_from([c for c in "0123456789abcdefghjkmnpqrstvwxyz" if c != code[at]]))
    with pytest.raises(BadInvite, match="checksum"):
        from_code(code[:at] + other + code[at + 1 :])


@given(
    st.text(max_size=300) | st.text("0123456789abcdefghjkmnpqrstvwxyz", max_size=300).map("shoal1-".__add__)
)
def test_whatever_is_pasted_gives_a_swarm_or_a_bad_invite(text: str) -> None:
    with pytest.raises(BadInvite) as caught:
        from_code(text)
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
        from_code(code)


def forge(body: bytes) -> str:
    """A code with a right length and checksum around any body."""
    data = len(body).to_bytes(2, "big") + body
    data += membership._checksum(data)
    return "shoal1-" + base64.b32encode(data).decode().rstrip("=").translate(membership._TO_CROCKFORD)


def deflated(data: bytes) -> bytes:
    deflate = membership.zlib.compressobj(9, wbits=-15, zdict=membership._HABITUAL)
    return deflate.compress(data) + deflate.flush()


def packed(*fields: object) -> str:
    return forge(deflated(membership.msgspec.msgpack.encode(fields)))


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
        from_code(code)


def test_a_new_swarm_has_a_secret_of_its_own() -> None:
    first, second = create("home"), create("home")
    assert first.secret is not None
    assert len(first.secret) == 32
    assert first.secret != second.secret


def test_the_secret_does_not_show_when_a_membership_is_printed() -> None:
    swarm = create("home")
    assert swarm.secret is not None
    assert repr(swarm.secret)[2:-1] not in repr(swarm)


@pytest.mark.parametrize("name", ["", "Home", "a b", "../x", "-x", "x" * 33, "x\n", "ünï"])
def test_a_name_that_could_be_more_than_a_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no name"):
        create(name)
    with pytest.raises(UsageError, match="no name"):
        load(tmp_path, name)


def test_a_membership_is_kept_for_its_owner_alone(tmp_path: Path) -> None:
    swarm = create("home", [ADDRESS])
    save(tmp_path / "swarms", swarm)
    assert load(tmp_path / "swarms", "home") == swarm
    assert stat.S_IMODE((tmp_path / "swarms" / "home.json").stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "swarms").iterdir()] == ["home.json"]


def test_a_swarm_is_made_once_and_found_from_then_on(tmp_path: Path) -> None:
    first = load_or_create(tmp_path, "home")
    assert load_or_create(tmp_path, "home") == first
    assert membership.names(tmp_path) == ["home"]


def test_joining_again_adds_addresses_and_loses_none(tmp_path: Path) -> None:
    swarm = create("home", [ADDRESS])
    save(tmp_path, swarm)
    other = ADDRESS.replace("192.168.1.20", "10.0.0.7")
    again = save(tmp_path, Membership("home", swarm.secret, (other, ADDRESS)))
    assert again.bootstrap == (other, ADDRESS)
    assert load(tmp_path, "home") == again


def test_another_swarm_of_the_same_name_does_not_overwrite_the_first(tmp_path: Path) -> None:
    first = save(tmp_path, create("home"))
    with pytest.raises(NotAllowed, match="another swarm named 'home'") as caught:
        save(tmp_path, create("home"))
    assert "--name home-2" in caught.value.next_command
    assert load(tmp_path, "home") == first


def test_the_settings_name_the_swarm_and_the_public_one_needs_a_word(tmp_path: Path) -> None:
    paths = Paths(tmp_path, tmp_path, tmp_path)
    assert membership.of(Settings(paths=paths)) == load(paths.swarms, "home")
    assert membership.of(Settings(swarm="public", public=True, paths=paths)).secret is None
    with pytest.raises(NotAllowed, match="user's word"):
        membership.of(Settings(swarm="public", paths=paths))


def test_an_unknown_swarm_names_the_known_ones(tmp_path: Path) -> None:
    save(tmp_path, create("attic"))
    with pytest.raises(NotRunning) as caught:
        load(tmp_path, "cellar")
    assert "attic" in caught.value.check


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"name":"home","secret":"AAAA"}', b"\xff\xfe"])
def test_a_damaged_file_is_named_and_kept(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "home.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"home\.json is damaged"):
        load_or_create(tmp_path, "home")
    assert (tmp_path / "home.json").read_bytes() == content


def test_the_public_swarm_has_no_secret_and_no_invite(tmp_path: Path) -> None:
    assert load(tmp_path, "public") == Membership("public", None)
    assert save(tmp_path, Membership("public", None)).secret is None
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="needs no invite"):
        to_code(Membership("public", None))
    with pytest.raises(UsageError, match="open swarm"):
        create("public")
