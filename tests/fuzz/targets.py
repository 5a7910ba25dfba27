"""What is fuzzed: every reader of bytes that a stranger may send. Each may only refuse them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import msgspec

from shoal.errors import BadInvite, RemoteProtocolError
from shoal.net.identity import Identity, verify
from shoal.swarm import compare, doubt
from shoal.swarm.announcement import Announcement, Served, seal, unseal
from shoal.swarm.membership import from_code
from shoal.testing.byhand import a_step, framed, rows
from shoal.wire.framing import Assembler
from shoal.wire.messages import (
    Close,
    Failed,
    Hello,
    HopTime,
    Locate,
    Message,
    NextHop,
    Open,
    Opened,
    Ping,
    Refused,
    Reroute,
    Step,
    decode,
    encode,
)

NOW = 1_700_000_000.0


def header(data: bytes) -> None:
    """A message's header, with the payload's size in the last two bytes."""
    with suppress(RemoteProtocolError):
        decode(data[:-2], int.from_bytes(data[-2:], "big"))


def frames(data: bytes) -> None:
    """A pipe's bytes, cut anywhere: what is held never exceeds what came."""
    assembler = Assembler(limit=1 << 16)
    cut = data[0] + 1 if data else 1
    with suppress(RemoteProtocolError):
        for start in range(0, len(data), cut):
            for _ in assembler.feed(data[start : start + cut]):
                pass
            assert assembler.held <= start + cut


def announcement(data: bytes) -> None:
    """A gossiped announcement."""
    with suppress(RemoteProtocolError):
        unseal(data, NOW, verify)


def directory(data: bytes) -> None:
    """Questions and answers between directories, and doubts."""
    for read in (compare.read_question, compare.read_difference, doubt.decode):
        with suppress(RemoteProtocolError):
            read(data)


def invite(data: bytes) -> None:
    """An invite code."""
    with suppress(BadInvite):
        from_code(data.decode("utf-8", "replace"))
    with suppress(BadInvite):
        from_code("shoal1-" + data.hex())


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (header, frames, announcement, directory, invite)
}

S = b"s" * 16
HONEST: list[Message] = [
    Hello(3, "shoal/0.1"),
    Open(S, "sha256:" + "a" * 64, "fp32", 0, 6, 32, 0, "me", NextHop("you", ("/ip4/1.2.3.4/tcp/1",))),
    Opened(S, 7),
    Refused(S, "busy", "no room", 2.5, 3),
    msgspec.structs.replace(a_step(64, S), times=(HopTime(0, 1, 2),)),
    Failed(S, 3, 0, "step_failed", "NaN"),
    Reroute(S, 1, "me", None, 12, 2),
    Locate(S),
    Close(S),
    Ping(9),
]

_IDENTITY = Identity.ephemeral()
_SERVED = Served("fish", "sha256:" + "a" * 64, 6, 64, 512, 300, 0, 6, "fp32", 64, 64, 0, 2.5)
_SAID = Announcement(_IDENTITY.peer, 1, NOW, NOW + 30, ("/ip4/1.2.3.4/tcp/1",), (), _SERVED, "shoal/0.1")


def _framed(message: Message) -> bytes:
    return framed(encode(message), rows(64) if message.__class__ is Step else b"")


SEEDS: dict[str, list[bytes]] = {
    "header": [encode(m) + (512 if m.__class__ is Step else 0).to_bytes(2, "big") for m in HONEST],
    "frames": [_framed(m) for m in HONEST],
    "announcement": [seal(_SAID, _IDENTITY.sign)],
    "directory": [compare.encode(compare.Question(compare.EVERYONE, {b"k" * 8: 3}))],
}
"""Honest input of each target, to make others of."""
