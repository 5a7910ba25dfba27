"""What a line of a batch may be, when one begins, and what counts against a key. Pure."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from shoal.client.rollouts.pace import pause_s
from shoal.gateway.access.keys import LOCAL, Caller, KeyLimits
from shoal.gateway.access.limits import RequestLimiter
from shoal.gateway.errors import LimitReached
from shoal.gateway.stored.batches.lines import LineFault, check_lines, read_line
from shoal.gateway.stored.batches.pace import AT_ONCE, PATIENCE_S, may_begin

from .stored import CHAT, line


def test_a_batch_begins_at_once_where_nobody_waits_and_rarely_where_somebody_does():
    assert [may_begin(0, running, 0.0) for running in (0, AT_ONCE - 1, AT_ONCE)] == [True, True, False]
    assert not may_begin(1, 0, PATIENCE_S - 1)
    assert may_begin(1, 0, PATIENCE_S)
    assert not may_begin(1, 1, 10 * PATIENCE_S)


def test_pauses_grow_to_a_minute_and_are_as_long_as_the_refusal_asks_for():
    assert [pause_s(failures) for failures in (1, 2, 3, 50)] == [1.0, 2.0, 4.0, 60.0]
    assert (pause_s(1, 30.0), pause_s(1, 9999.0)) == (30.0, 60.0)


@pytest.mark.parametrize(
    ("data", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b"[1]", "invalid_json_line", None),
        (b"[" * 100_000, "invalid_json_line", None),
        (b"\xff", "invalid_json_line", None),
        (b'{"custom_id": 1}', "invalid_custom_id", "custom_id"),
        (b'{"custom_id": "a", "method": "GET"}', "invalid_method", "method"),
        (line("a", url="/v1/embeddings"), "invalid_url", "url"),
        (
            b'{"custom_id": "a", "method": "POST", "url": "%s"}' % CHAT.encode(),
            "missing_required_parameter",
            "body",
        ),
    ],
)
def test_a_line_that_is_no_request_is_refused_by_its_field(data, code, param):
    with pytest.raises(LineFault) as caught:
        read_line(data, CHAT)
    assert (caught.value.code, caught.value.param) == (code, param)


def test_faults_of_a_file_are_told_by_their_lines_and_only_so_many():
    given = [(1, line("a")), (2, b"\n"), (3, line("a")), (4, b"x")]
    numbers, errors = check_lines(given, CHAT)
    assert numbers == [1]
    assert [(error.line, error.code) for error in errors] == [
        (3, "duplicate_custom_id"),
        (4, "invalid_json_line"),
    ]
    assert len(check_lines([(n, b"x") for n in range(500)], CHAT)[1]) == 100
    assert [error.code for error in check_lines([(1, b" \n")], CHAT)[1]] == ["empty_file"]


def test_requests_that_nobody_waits_for_have_limits_of_their_own():
    async def go():
        limits = RequestLimiter(running=1, waiting=0)
        key = Caller("key_a", "a", KeyLimits(concurrency=1))
        async with limits.admitted(replace(key, background=True)):
            assert limits.awaited == 0
            with pytest.raises(LimitReached):
                async with limits.admitted(replace(key, background=True)):
                    pass
            async with limits.admitted(key):
                assert limits.awaited == 1

    trio.run(go)


def test_what_is_stored_or_read_is_counted_but_keeps_no_batch_waiting():
    async def go():
        limits = RequestLimiter(running=1, waiting=0)
        key = Caller("key_a", "a", KeyLimits(concurrency=1))
        async with limits.admitted(key, awaited=False):
            assert limits.awaited == 0
            for other in (key, LOCAL):
                with pytest.raises(LimitReached):
                    async with limits.admitted(other):
                        pass
        async with limits.admitted(key):
            assert limits.awaited == 1
        assert limits.awaited == 0

    trio.run(go)
