"""Invite codes, by which whoever has one becomes a member.

An invite is ``shoal1-`` and base32 text (Crockford's letters: no i, l, o, u) of::

    length (2 bytes) | deflated msgpack [name, secret, addresses] | checksum (4 bytes of sha-256)

so that a code cut short, a mistyped one and one of a later version are told apart.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import zlib
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from shoal.errors import BadInvite, UsageError
from shoal.swarm.membership import MAX_ADDRESSES, SECRET_BYTES, Membership, checked

MAX_CODE = 4096
"""Characters of an invite; a usual one has 250."""
MAX_INVITE = 8 << 10
"""Bytes of an invite once inflated."""

_PREFIX = "shoal1-"
_CHECKSUM = 4
_HABITUAL = b"/ip6/dns4/dns6/dnsaddr/udp/ws/p2p-circuit/ip4/192.168.1.10.0.0./ip4/127.0.0.1/tcp/p2p/12D3KooW"
"""What addresses are made of, given to deflate before it begins. To change it is a new version of invites."""
_TO_CROCKFORD = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", "0123456789abcdefghjkmnpqrstvwxyz")
_FROM_CROCKFORD = str.maketrans(
    "0123456789abcdefghjkmnpqrstvwxyzoil", "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567ABB", " \t\r\n-"
)


class _Invite(Struct, frozen=True, array_like=True):
    name: str
    secret: Annotated[bytes, Meta(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]
    bootstrap: Annotated[tuple[str, ...], Meta(max_length=MAX_ADDRESSES)]


def write_invite(membership: Membership) -> str:
    """The invite for a swarm. Whoever reads it is a member: hand it over as you would a key.

    Raises:
        UsageError: the public swarm needs none; or more than 16 addresses.
    """
    if membership.secret is None:
        raise UsageError("the public swarm needs no invite", next_command="shoal up --public")
    checked(membership)
    packed = msgspec.msgpack.encode(_Invite(membership.name, membership.secret, membership.bootstrap))
    deflate = zlib.compressobj(9, wbits=-15, zdict=_HABITUAL)
    body = deflate.compress(packed) + deflate.flush()
    data = len(body).to_bytes(2, "big") + body
    text = base64.b32encode(data + _checksum(data)).decode().rstrip("=")
    return _PREFIX + text.translate(_TO_CROCKFORD)


def read_invite(code: str) -> Membership:
    """Read an invite. White space, line breaks and capitals do not matter.

    Raises:
        BadInvite: the code cannot be read; the message says what is wrong with it.
    """
    body = _inflate(_unwrap(code))
    try:
        invite = msgspec.msgpack.decode(body, type=_Invite)
        return checked(Membership(invite.name, invite.secret, invite.bootstrap))
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
                check="install a newer version of Shoal",
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
        check="copy the whole code, from 'shoal1-' to its end",
        next_command="shoal join",
    )
