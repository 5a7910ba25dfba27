"""The swarms this machine is in, one file each.

A swarm is its secret: whoever has it is a member, and nothing else makes one. The name is for people and
stays on this machine and in invites; two members may call the same swarm by different names.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from shoal.config import Settings
from shoal.errors import NotAllowed, NotRunning, ShoalError, UsageError
from shoal.whole_file import write_whole

PUBLIC = "public"
"""The name of the open swarm, which has no secret."""
SECRET_BYTES = 32
MAX_ADDRESSES = 16

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_ADDRESS = re.compile(r"/[\x21-\x7e]{1,240}/p2p/[1-9A-HJ-NP-Za-km-z]{1,100}")


@dataclass(frozen=True, slots=True)
class Membership:
    """One swarm that this machine is in."""

    name: str
    """What it is called here: lower-case letters, digits and hyphens."""
    secret: bytes | None
    """32 bytes that every member knows; ``None`` for the public swarm. Never printed but in an invite."""
    bootstrap: tuple[str, ...] = ()
    """Multiaddrs, each with its ``/p2p`` part, to join through."""

    def __repr__(self) -> str:
        return f"Membership({self.name!r}, secret={'…' if self.secret else None}, bootstrap={self.bootstrap})"


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    secret: Annotated[bytes, Meta(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]
    bootstrap: tuple[str, ...] = ()


def create(name: str, bootstrap: Iterable[str] = ()) -> Membership:
    """A new swarm with a secret of its own, not yet saved.

    Raises:
        UsageError: the name, or an address, is not well formed.
    """
    if name == PUBLIC:
        raise UsageError("'public' is the open swarm's name and cannot be given to another")
    return checked(Membership(name, secrets.token_bytes(SECRET_BYTES), tuple(bootstrap)))


def load(folder: Path, name: str) -> Membership:
    """The swarm of that name.

    Raises:
        NotRunning: this machine is in no swarm of that name.
        UsageError: that is no name, or its file is damaged.
    """
    if name == PUBLIC:
        return Membership(PUBLIC, None)
    path = _path(folder, name)
    try:
        stored = msgspec.json.decode(path.read_bytes(), type=_File)
        return checked(Membership(name, stored.secret, stored.bootstrap))
    except FileNotFoundError:
        raise NotRunning(
            f"this machine is in no swarm named {name!r}",
            check=f"choose one of its swarms: {', '.join(names(folder)) or 'none yet'}",
            next_command="shoal up to begin one, or shoal join",
        ) from None
    except (msgspec.DecodeError, RecursionError, UsageError) as error:
        raise UsageError(
            f"{path} is damaged: {error}",
            check="ask a member for a new invite, and move the file away",
            next_command="shoal join",
        ) from error


def of(settings: Settings) -> Membership:
    """The swarm that the settings name; a private one is made when it is not there yet.

    Raises:
        NotAllowed: it is the public one, and ``public`` was not set.
        UsageError: as :func:`load_or_create`.
    """
    if settings.swarm == PUBLIC and not settings.public:
        raise NotAllowed(
            "the public swarm is used only with --public",
            check="note that its peers see your address, what you serve and the hidden states you send",
            next_command="the same command with --public",
        )
    return load_or_create(settings.paths.swarms, settings.swarm)


def load_or_create(folder: Path, name: str) -> Membership:
    """The swarm of that name, made with a new secret if there is none. Two processes get the same one.

    Raises:
        UsageError: the name is not well formed, or the swarm's file is damaged.
    """
    if name != PUBLIC and not _path(folder, name).exists():
        with suppress(FileExistsError):
            _write(_path(folder, name), create(name), replace_existing=False)
    return load(folder, name)


def save(folder: Path, membership: Membership) -> Membership:
    """Keep a membership. Joining the same swarm again adds its addresses, the new ones first.

    Raises:
        NotAllowed: another swarm is already kept under that name; its secret is not overwritten.
        UsageError: the name is not well formed; or what is kept is damaged.
    """
    if membership.secret is None:
        return membership
    path = _path(folder, membership.name)
    if path.exists():
        known = load(folder, membership.name)
        if known.secret != membership.secret:
            raise NotAllowed(
                f"this machine is already in another swarm named {membership.name!r}",
                check="join under another name; it is only a label on this machine",
                next_command=f"shoal join --name {membership.name[:29]}-2",
            )
        addresses = dict.fromkeys(membership.bootstrap + known.bootstrap)
        membership = replace(membership, bootstrap=tuple(addresses)[:MAX_ADDRESSES])
    _write(path, checked(membership), replace_existing=True)
    return membership


def names(folder: Path) -> list[str]:
    """The private swarms that this machine is in."""
    return sorted(path.stem for path in folder.glob("*.json") if _NAME.fullmatch(path.stem))


def _path(folder: Path, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name for a swarm",
            check="choose 1 to 32 lower-case letters, digits and hyphens, for example reading-room",
        )
    return folder / f"{name}.json"


def checked(membership: Membership) -> Membership:
    """The membership itself.

    Raises:
        UsageError: its name, or an address, is not well formed, or there are too many addresses.
    """
    _path(Path(), membership.name)
    if len(membership.bootstrap) > MAX_ADDRESSES:
        raise UsageError(f"a swarm keeps at most {MAX_ADDRESSES} addresses to join through")
    for address in membership.bootstrap:
        if not _ADDRESS.fullmatch(address):
            raise UsageError(
                f"{address[:80]!r} is no address to join through",
                check="write it like /ip4/192.0.2.1/tcp/4001/p2p/12D3KooW…",
            )
    return membership


def _write(path: Path, membership: Membership, *, replace_existing: bool) -> None:
    stored = _File(membership.name, membership.secret or b"", membership.bootstrap)
    data = msgspec.json.format(msgspec.json.encode(stored)) + b"\n"
    try:
        write_whole(path, data, replace=replace_existing)
    except FileExistsError:
        raise
    except OSError as error:
        raise ShoalError(
            f"cannot write {path}: {error.strerror or error}",
            check="check the folder's owner and the free disk space",
        ) from error
