"""Releases side by side: what two of them speak, and that the older one is sent nothing unknown to it."""

from __future__ import annotations

from importlib.metadata import version
from typing import get_args

import pytest
from msgspec import inspect

from shoal.errors import OutdatedPeer, OutdatedRelease
from shoal.types import Codec
from shoal.wire.messages import (
    AGENT,
    NEWEST_VERSION,
    OLDEST_VERSION,
    Attest,
    GetReceipts,
    Hello,
    Message,
    Open,
    Opened,
    Step,
    decode,
    encode,
)
from shoal.wire.payload import hidden_states
from shoal.wire.versions import SINCE, check_codec, check_known, known_codec, knows_codec, spoken

KNOWN_TO_THE_OLDEST = {
    *("hello", "ping", "pong", "resume", "resumed", "goodbye"),
    *("open", "opened", "refused", "close", "step", "result", "failed", "reroute", "rerouted"),
    *(
        "locate",
        "located",
        "get_receipts",
        "receipts",
        "infer",
        "inferred",
        "fetch",
        "fetched",
        "not_fetched",
    ),
}
"""The tags of version 7: what its release can read."""
SESSION = b"s" * 16


def opening(adapter: str = "") -> Open:
    return Open(
        SESSION, "sha256:" + "a" * 64, "fp32", 0, 2, 8, 0, None, None, "n1/fp32/auto/modules", b"", adapter
    )


def a_step(codec: Codec) -> Step:
    return Step(SESSION, 1, 0, 1, 1, hidden_states(codec, 1, 64))


@pytest.mark.parametrize(
    ("hello", "version"),
    [
        (Hello(OLDEST_VERSION), OLDEST_VERSION),  # a release from before there was a choice
        (Hello(OLDEST_VERSION, newest=NEWEST_VERSION), NEWEST_VERSION),
        (Hello(OLDEST_VERSION, newest=NEWEST_VERSION + 3), NEWEST_VERSION),
        (Hello(1, newest=NEWEST_VERSION - 1), NEWEST_VERSION - 1),
        (Hello(NEWEST_VERSION, newest=NEWEST_VERSION + 9), NEWEST_VERSION),
    ],
)
def test_two_ends_speak_the_newest_version_that_both_know(hello: Hello, version: int) -> None:
    assert spoken(hello) == version


def test_who_is_too_old_is_said() -> None:
    with pytest.raises(OutdatedPeer, match="the peer's release is too old"):
        spoken(Hello(1, newest=OLDEST_VERSION - 1))
    with pytest.raises(OutdatedRelease, match="this machine's release is too old"):
        spoken(Hello(NEWEST_VERSION + 1, newest=NEWEST_VERSION + 2))


def test_the_hello_of_the_oldest_release_is_read_and_ours_by_it() -> None:
    """Its hello has three fields, and it hangs up on another first one than its own."""
    assert decode(b"\x94\xa5hello\x07\xa9shoal/0.1\xc4\x00", 0) == Hello(7, "shoal/0.1", b"", 0)
    assert encode(Hello(OLDEST_VERSION, AGENT, b"", NEWEST_VERSION)).startswith(b"\x95\xa5hello\x07")


def test_every_message_has_the_version_that_first_knew_it() -> None:
    for message in get_args(Message):
        tag = inspect.type_info(message).tag  # pyright: ignore[reportAttributeAccessIssue]
        assert (message in SINCE) != (tag in KNOWN_TO_THE_OLDEST), tag
    assert all(OLDEST_VERSION < since <= NEWEST_VERSION for since in SINCE.values())


@pytest.mark.parametrize(
    ("message", "since"),
    [
        (Attest(1, bytes(32)), 8),
        (GetReceipts(SESSION, SESSION, 1), 0),
        (GetReceipts(SESSION, SESSION, 1, commit=True), 8),
        (opening(), 0),
        (opening("sha256:" + "b" * 64), 9),
        (a_step("int8"), 0),
        (a_step("int6"), 9),
        (Opened(SESSION, 8, "int8", held_codec="int8"), 0),
        (Opened(SESSION, 8, "int6"), 9),
        (Opened(SESSION, 8, held_codec="int6"), 9),
    ],
)
def test_a_message_is_sent_to_who_knows_what_it_means(message: Message, since: int) -> None:
    for spoken_version in range(OLDEST_VERSION, NEWEST_VERSION + 1):
        if spoken_version < since:
            with pytest.raises(OutdatedPeer, match=f"came with {since}"):
                check_known(message, spoken_version)
        else:
            check_known(message, spoken_version)


@pytest.mark.parametrize("codec", get_args(Codec))
def test_a_codec_is_asked_for_where_it_is_known_and_a_more_exact_one_elsewhere(codec: Codec) -> None:
    for known in range(OLDEST_VERSION, NEWEST_VERSION + 1):
        asked = known_codec(codec, known)
        assert asked == (codec if knows_codec(codec, known) else "int8")
        check_codec(asked, known)
        check_known(a_step(asked), known)
    assert known_codec(codec, NEWEST_VERSION) == codec


def test_a_session_in_a_codec_is_for_who_knows_it() -> None:
    check_codec("int6", 9)
    with pytest.raises(OutdatedPeer, match=r"hidden states in int6.*version 8.*came with 9"):
        check_codec("int6", 8)


def test_this_release_says_its_own_name() -> None:
    assert version("shoal").startswith(AGENT.removeprefix("shoal/"))
