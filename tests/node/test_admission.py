"""Who is let in: each thing that an Open must say, and what nobody is left holding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from shoal.errors import Busy, ChannelClosed, DigestMismatch, NotAllowed, ShoalError
from shoal.ledger.credits.credit_file import CreditFile
from shoal.node.admission import (
    Admission,
    NextHopUnreachable,
    Service,
    check_neighbours,
    check_open,
    refusal,
)
from shoal.node.kept_caches import KeptCache
from shoal.node.load import LoadMeter
from shoal.node.paying.credit_desk import CreditDesk
from shoal.node.sessions import Opening, Sessions
from shoal.testing.sim.agenda import Agenda
from shoal.testing.sim.engine import SimEngine
from shoal.types import AdapterDigest, Digest, Numerics, PeerId, SessionId, Span
from shoal.wire.cache_names import CacheName
from shoal.wire.fields import NextHop
from shoal.wire.messages import Open, Refused, Reroute

ME = PeerId("me")
SESSION = SessionId(b"s" * 16)
OURS = Numerics("bf16", "auto", "batch")
SERVICE = Service(ME, Digest("sha256:model"), Span(2, 8), OURS)
FITTING = Open(SESSION, "sha256:model", "bf16", 2, 8, 100, 0, None, None, "n1/bf16/auto/batch")


def test_a_session_that_fits_is_let_in_also_in_a_part_of_the_span() -> None:
    check_open(FITTING, SERVICE)
    check_open(msgspec.structs.replace(FITTING, start=4, end=5), SERVICE)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"digest": "sha256:other"}, DigestMismatch, "another model"),
        ({"format": "int8"}, NotAllowed, "computes in bf16, not int8"),
        (
            {"numerics": "n1/bf16/int8/batch"},
            NotAllowed,
            "by the numerics n1/bf16/auto/batch, not n1/bf16/int8",
        ),
        ({"numerics": "n1/bf16/auto/torch"}, NotAllowed, "a session has one"),
        ({"numerics": "n2/bf16/auto/batch"}, NotAllowed, "not n2/bf16/auto/batch"),
        ({"numerics": "n1/bf16/int8/any"}, NotAllowed, "not n1/bf16/int8/any"),
        ({"adapter": "sha256:other"}, NotAllowed, "does not serve the adapter sha256:other"),
        ({"start": 1}, NotAllowed, "1:8 is not inside"),
        ({"end": 9}, NotAllowed, "2:9 is not inside"),
        ({"previous": ME}, NotAllowed, "its own neighbour"),
        ({"next": NextHop(ME)}, NotAllowed, "its own neighbour"),
    ],
)
def test_what_does_not_fit_is_refused_and_told_why(
    changes: dict[str, Any], error: type[ShoalError], says: str
) -> None:
    with pytest.raises(error, match=says):
        check_open(msgspec.structs.replace(FITTING, **changes), SERVICE)


def test_a_session_may_have_an_adapter_that_the_node_serves() -> None:
    ours = AdapterDigest("sha256:ours")
    service = Service(ME, SERVICE.digest, SERVICE.span, OURS, adapters=frozenset({ours}))
    check_open(msgspec.structs.replace(FITTING, adapter=ours), service)
    check_open(FITTING, service)


def test_a_session_that_promises_no_bits_is_open_to_every_means_of_computing() -> None:
    check_open(msgspec.structs.replace(FITTING, numerics="n1/bf16/auto/any"), SERVICE)


def test_a_node_that_leaves_lets_nobody_in_and_says_when_to_come_back() -> None:
    with pytest.raises(Busy, match="leaving") as caught:
        check_open(FITTING, Service(ME, SERVICE.digest, SERVICE.span, OURS, draining=True))
    assert caught.value.retry_after_s == 60.0


def test_a_node_that_has_paused_lets_nobody_in_and_says_why() -> None:
    with pytest.raises(Busy, match="has paused: its machine is in use") as caught:
        check_open(FITTING, Service(ME, SERVICE.digest, SERVICE.span, OURS, paused=True))
    assert caught.value.retry_after_s == 30.0


def test_a_change_of_route_may_not_make_a_hop_its_own_neighbour_either() -> None:
    check_neighbours(Reroute(SESSION, 0, "before", NextHop("after")), ME)
    with pytest.raises(NotAllowed):
        check_neighbours(Reroute(SESSION, 0, "before", NextHop(ME)), ME)


def test_a_refusal_carries_what_the_client_can_act_on() -> None:
    busy = Busy("full", retry_after_s=7.0)
    assert refusal(SESSION, busy, 12) == Refused(SESSION, "busy", "full", 7.0, 12)
    gone = NextHopUnreachable("after", ChannelClosed("silent"))
    assert refusal(SESSION, gone, 12) == Refused(SESSION, "channel_closed", "silent", 1.0, 12, "after")
    assert len(refusal(SESSION, NotAllowed("x" * 5000), 0).message) == 1024


class Client:
    """A channel to a client, as far as admission uses it."""

    peer, host = PeerId("client"), "192.0.2.1"

    def __init__(self) -> None:
        self.replies: list[object] = []

    def reply(self, message: object) -> None:
        self.replies.append(message)


@pytest.mark.parametrize("pushed_out", [True, False])
async def test_a_session_given_up_at_the_moment_when_it_opens_holds_nothing(pushed_out: bool) -> None:
    given_up: list[Opening] = []

    class Engine(SimEngine):
        async def open(
            self, session: SessionId, span: Span | None = None, adapter: AdapterDigest | None = None
        ) -> None:
            await super().open(session, span, adapter)
            given_up[0].pushed_out = pushed_out
            given_up[0].scope.cancel()

    engine, client, unused = Engine(Span(2, 8), Agenda(), []), Client(), list[object]()
    sessions = Sessions(4, unused=unused.append)
    admission = Admission(sessions, None, LoadMeter(ME, 0.0), lambda *_: None, "auto")  # type: ignore[arg-type]
    service = Service(ME, SERVICE.digest, SERVICE.span, engine.numerics)
    asked = msgspec.structs.replace(FITTING, format=engine.format, numerics=str(engine.numerics))
    opening = admission.begin(client, asked, service, engine)  # type: ignore[arg-type]
    assert opening is not None
    given_up.append(opening)
    assert await admission.open(client, asked, opening, engine) is None  # type: ignore[arg-type]
    assert (len(sessions), engine.sessions, unused) == (0, 0, [engine])
    assert [reply.code for reply in client.replies if isinstance(reply, Refused)] == ["busy"] * pushed_out
    with trio.fail_after(15):
        await sessions.wait_idle()


@pytest.mark.parametrize("kept", [True, False])
async def test_with_credits_what_is_kept_by_name_keeps_no_newcomer_out(tmp_path: Path, kept: bool) -> None:
    engine, client = SimEngine(Span(2, 8), Agenda(), []), Client()
    engine.pool.grow(engine.pool.promise(0), engine.tokens)
    sessions = Sessions(4, unused=list[object]().append)
    if kept:
        names = (CacheName(100, b"n" * 16),)
        sessions.kept.add(
            KeptCache(
                engine, None, FITTING, client.peer, names, "float32", engine.tokens, trio.current_time()
            )  # type: ignore[arg-type]
        )
    credits = CreditDesk(CreditFile(tmp_path / "credits"), ME, lambda *_: True, lambda: 0.0)
    admission = Admission(sessions, None, LoadMeter(ME, 0.0), lambda *_: None, "auto", credits)  # type: ignore[arg-type]
    service = Service(ME, SERVICE.digest, SERVICE.span, engine.numerics)
    asked = msgspec.structs.replace(FITTING, format=engine.format, numerics=str(engine.numerics))
    assert (admission.begin(client, asked, service, engine) is not None) == kept  # type: ignore[arg-type]
    assert [reply.code for reply in client.replies if isinstance(reply, Refused)] == ["busy"] * (not kept)


async def test_a_session_that_cannot_be_credited_holds_nothing() -> None:
    class Credits:
        def check(self, *_: object) -> None:
            pass

        def metered(self, *_: object) -> None:
            raise Busy("others are before it")

    engine, client, unused = SimEngine(Span(2, 8), Agenda(), []), Client(), list[object]()
    sessions = Sessions(4, unused=unused.append)
    admission = Admission(sessions, None, LoadMeter(ME, 0.0), lambda *_: None, "auto", Credits())  # type: ignore[arg-type]
    service = Service(ME, SERVICE.digest, SERVICE.span, engine.numerics)
    asked = msgspec.structs.replace(FITTING, format=engine.format, numerics=str(engine.numerics))
    opening = admission.begin(client, asked, service, engine)  # type: ignore[arg-type]
    assert opening is not None
    assert await admission.open(client, asked, opening, engine) is None  # type: ignore[arg-type]
    assert (len(sessions), engine.sessions, unused) == (0, 0, [engine])
    assert [reply.code for reply in client.replies if isinstance(reply, Refused)] == ["busy"]
