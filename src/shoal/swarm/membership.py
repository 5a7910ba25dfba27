"""The swarms this machine is in, one file each, and the invite codes that bring others in.

A swarm is its secret: whoever has it is a member, and nothing else makes one. The name is for people and
stays on this machine and in invites; two members may call the same swarm by different names.

An invite is ``shoal1-`` and base32 text (Crockford's letters: no i, l, o, u) of::

    length (2 bytes) | deflated msgpack [name, secret, addresses] | checksum (4 bytes of sha-256)

so that a code cut short, a mistyped one and one of a later version are told apart.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import secrets
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from shoal.config import Settings
from shoal.errors import BadInvite, NotAllowed, NotRunning, ShoalError, UsageError

PUBLIC = "public"
"""The name of the open swarm, which has no secret."""
SECRET_BYTES = 32
MAX_ADDRESSES = 16
MAX_CODE = 4096
"""Characters of an invite; a usual one has 250."""
MAX_INVITE = 8 << 10
"""Bytes of an invite once inflated."""

_PREFIX = "shoal1-"
_CHECKSUM = 4
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_ADDRESS = re.compile(r"/[\x21-\x7e]{1,240}/p2p/[1-9A-HJ-NP-Za-km-z]{1,100}")
_HABITUAL = b"/ip6/dns4/dns6/dnsaddr/udp/ws/p2p-circuit/ip4/192.168.1.10.0.0./ip4/127.0.0.1/tcp/p2p/12D3KooW"
"""What addresses are made of, given to deflate before it begins. To change it is a new version of invites."""
_TO_CROCKFORD = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", "0123456789abcdefghjkmnpqrstvwxyz")
_FROM_CROCKFORD = str.maketrans(
    "0123456789abcdefghjkmnpqrstvwxyzoil", "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567ABB", " \t\r\n-"
)


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


class _Invite(Struct, frozen=True, array_like=True):
    name: str
    secret: Annotated[bytes, Meta(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]
    bootstrap: Annotated[tuple[str, ...], Meta(max_length=MAX_ADDRESSES)]


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
    return _checked(Membership(name, secrets.token_bytes(SECRET_BYTES), tuple(bootstrap)))


# --- invites ---------------------------------------------------------------------------------------------


def to_code(membership: Membership) -> str:
    """The invite for a swarm. Whoever reads it is a member: hand it over as you would a key.

    Raises:
        UsageError: the public swarm needs none; or more than 16 addresses.
    """
    if membership.secret is None:
        raise UsageError("the public swarm needs no invite", next_command="shoal up --public")
    _checked(membership)
    packed = msgspec.msgpack.encode(_Invite(membership.name, membership.secret, membership.bootstrap))
    deflate = zlib.compressobj(9, wbits=-15, zdict=_HABITUAL)
    body = deflate.compress(packed) + deflate.flush()
    data = len(body).to_bytes(2, "big") + body
    text = base64.b32encode(data + _checksum(data)).decode().rstrip("=")
    return _PREFIX + text.translate(_TO_CROCKFORD)


def from_code(code: str) -> Membership:
    """Read an invite. White space, line breaks and capitals do not matter.

    Raises:
        BadInvite: the code cannot be read; the message says what is wrong with it.
    """
    body = _inflate(_unwrap(code))
    try:
        invite = msgspec.msgpack.decode(body, type=_Invite)
        return _checked(Membership(invite.name, invite.secret, invite.bootstrap))
    except (msgspec.DecodeError, RecursionError, UsageError) as error:
        raise _bad(f"the invite holds something else than a swarm ({error})") from error


def _unwrap(code: str) -> bytes:
    """The deflated part of a code, once prefix, length and checksum are right."""
    text = "".join(code[: 2 * MAX_CODE].split()).lower()
    if len(text) > MAX_CODE:
        raise _bad(f"this is longer than any invite ({MAX_CODE} characters)")
    if not text.startswith(_PREFIX):
        if later := re.match(r"shoal(\d+)-", text):
            raise BadInvite(
                f"this invite is of version {later[1]}, and this Shoal reads version 1",
                check="whether a newer Shoal is out",
                next_command="shoal version",
            )
        raise _bad("this is no invite: one begins with 'shoal1-'")
    letters = text.removeprefix(_PREFIX).translate(_FROM_CROCKFORD)
    try:
        # Letters that fill no whole byte mean a code cut short; it is the length below that says so.
        data = base64.b32decode(letters[: len(letters) // 8 * 8] + _padded(letters[len(letters) // 8 * 8 :]))
    except (binascii.Error, ValueError) as error:
        raise _bad("the invite has characters that invites do not have") from error
    length = int.from_bytes(data[:2], "big")
    whole = 2 + length + _CHECKSUM
    if len(data) < max(whole, 3):
        raise _bad("the invite is cut short")
    if len(data) > whole or _checksum(data[:-_CHECKSUM]) != data[-_CHECKSUM:]:
        raise _bad("the invite's checksum is wrong: a character was lost, added or changed")
    return data[2:-_CHECKSUM]


def _padded(letters: str) -> str:
    usable = {1: 0, 3: 2, 6: 5}.get(len(letters), len(letters))
    return letters[:usable] + "=" * (-usable % 8)


def _inflate(body: bytes) -> bytes:
    inflate = zlib.decompressobj(wbits=-15, zdict=_HABITUAL)
    try:
        data = inflate.decompress(body, MAX_INVITE)
    except zlib.error as error:
        raise _bad("the invite cannot be unpacked") from error
    if inflate.unconsumed_tail or not inflate.eof:
        raise _bad("the invite holds more than an invite may")
    return data


def _checksum(data: bytes) -> bytes:
    return hashlib.sha256(_PREFIX.encode() + data).digest()[:_CHECKSUM]


def _bad(message: str) -> BadInvite:
    return BadInvite(
        message,
        check="that the whole code was copied, from 'shoal1-' to its end",
        next_command="shoal join",
    )


# --- files -----------------------------------------------------------------------------------------------


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
        return _checked(Membership(name, stored.secret, stored.bootstrap))
    except FileNotFoundError:
        raise NotRunning(
            f"this machine is in no swarm named {name!r}",
            check=f"the swarms it is in: {', '.join(names(folder)) or 'none yet'}",
            next_command="shoal up to begin one, or shoal join",
        ) from None
    except (msgspec.DecodeError, RecursionError, UsageError) as error:
        raise UsageError(
            f"{path} is damaged: {error}",
            check="ask a member for a new invite, and move that file away",
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
            "the public swarm needs the user's word",
            check="its peers see your address, what you serve and the hidden states you send",
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
                check="a name is only a label here: join under another one",
                next_command=f"shoal join --name {membership.name[:29]}-2",
            )
        addresses = dict.fromkeys(membership.bootstrap + known.bootstrap)
        membership = replace(membership, bootstrap=tuple(addresses)[:MAX_ADDRESSES])
    _write(path, _checked(membership), replace_existing=True)
    return membership


def names(folder: Path) -> list[str]:
    """The private swarms that this machine is in."""
    return sorted(path.stem for path in folder.glob("*.json") if _NAME.fullmatch(path.stem))


def _path(folder: Path, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name for a swarm",
            check="a name has 1 to 32 lower-case letters, digits and hyphens, for example reading-room",
        )
    return folder / f"{name}.json"


def _checked(membership: Membership) -> Membership:
    _path(Path(), membership.name)
    if len(membership.bootstrap) > MAX_ADDRESSES:
        raise UsageError(f"a swarm keeps at most {MAX_ADDRESSES} addresses to join through")
    for address in membership.bootstrap:
        if not _ADDRESS.fullmatch(address):
            raise UsageError(
                f"{address[:80]!r} is no address to join through",
                check="one looks like /ip4/192.0.2.1/tcp/4001/p2p/12D3KooW…",
            )
    return membership


def _write(path: Path, membership: Membership, *, replace_existing: bool) -> None:
    """Write whole or not at all. The temporary file, and so its heir, is mode 0600 from the first byte."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
            temporary = Path(file.name)
            try:
                stored = _File(membership.name, membership.secret or b"", membership.bootstrap)
                file.write(msgspec.json.format(msgspec.json.encode(stored)) + b"\n")
                file.flush()
                os.fsync(file.fileno())
                if replace_existing:
                    temporary.replace(path)
                else:
                    path.hardlink_to(temporary)
            finally:
                temporary.unlink(missing_ok=True)
    except FileExistsError:
        raise
    except OSError as error:
        raise ShoalError(
            f"cannot write {path}: {error.strerror or error}", check="the folder's owner and free disk space"
        ) from error
