"""The swarms a machine is in, and the codes that bring others in."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from shoal.config import Settings
from shoal.errors import NotAllowed, NotRunning, UsageError
from shoal.swarm import membership
from shoal.swarm.invite import write_invite
from shoal.swarm.membership import (
    Membership,
    create,
    load,
    load_or_create,
    save,
)
from shoal.types import Paths

PEER = "12D3KooWGbkv2Ev5EZaQuGWbvHpJnGMNPpgKPMKU1Y6DXA1rWvY5"
ADDRESS = f"/ip4/192.168.1.20/tcp/4001/p2p/{PEER}"


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
    with pytest.raises(NotAllowed, match="only with --public"):
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
        write_invite(Membership("public", None))
    with pytest.raises(UsageError, match="open swarm"):
        create("public")
