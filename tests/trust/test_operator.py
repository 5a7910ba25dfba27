"""An operator's statement is about one peer, for a time, signed by the operator, or it is refused by name."""

from __future__ import annotations

import msgspec
import pytest

from shoal.errors import RemoteProtocolError, UsageError
from shoal.net.identity import Identity, verify
from shoal.trust.independence import apart, closeness, together, whereabouts
from shoal.trust.operator import (
    EARLY_S,
    MAX_STATEMENT,
    OperatorFile,
    OperatorStatement,
    read_operator_statement,
    state,
)

NOW, DAY = 1_000_000.0, 86400
OPERATOR, MALLORY = (Identity.from_seed(bytes([number]) * 32) for number in (1, 2))
MINE, OTHER = (Identity.from_seed(bytes([number]) * 32).peer for number in (3, 4))
STATEMENT = state(OPERATOR.peer, MINE, NOW, 30, OPERATOR.sign)


def test_what_an_operator_signs_holds_for_that_peer_and_that_time() -> None:
    STATEMENT.check_signature(MINE, verify)
    for at in (NOW, NOW - EARLY_S, NOW + 30 * DAY):
        STATEMENT.check_dates(at)


def test_for_another_peer_it_is_none() -> None:
    with pytest.raises(RemoteProtocolError, match=f"has not signed for the peer {OTHER}"):
        STATEMENT.check_signature(OTHER, verify)


@pytest.mark.parametrize(
    "forged",
    [
        msgspec.structs.replace(STATEMENT, operator=MALLORY.peer),
        msgspec.structs.replace(STATEMENT, not_after=STATEMENT.not_after + 1),
        msgspec.structs.replace(STATEMENT, not_before=0),
        msgspec.structs.replace(STATEMENT, signature=bytes(64)),
        msgspec.structs.replace(STATEMENT, operator="nobody"),
        state(OPERATOR.peer, MINE, NOW, 30, MALLORY.sign),
    ],
)
def test_what_the_operator_has_not_signed_is_refused(forged: OperatorStatement) -> None:
    with pytest.raises(RemoteProtocolError, match=f"{forged.operator} has not signed for the peer {MINE}"):
        forged.check_signature(MINE, verify)


@pytest.mark.parametrize(
    ("at", "why"),
    [(NOW - EARLY_S - 5, "holds only 5 s from now"), (NOW + 30 * DAY + 7, "expired 7 s ago")],
)
def test_before_and_after_its_time_it_does_not_hold(at: float, why: str) -> None:
    with pytest.raises(RemoteProtocolError, match=why):
        STATEMENT.check_dates(at)


def test_it_survives_its_file() -> None:
    data = OperatorFile.of(MINE, STATEMENT).encoded()
    read = read_operator_statement(data, "mine.json", verify)
    assert (read.peer, read.statement) == (MINE, STATEMENT)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b" " * (MAX_STATEMENT + 1),
        OperatorFile.of(OTHER, STATEMENT).encoded(),
        OperatorFile.of(MINE, STATEMENT).encoded().replace(b"shoal operator 1", b"shoal operator 2"),
        b'{"kind":"shoal operator 1","operator":"' + b"x" * 200 + b'"}',
    ],
)
def test_a_file_that_is_no_statement_is_refused_with_what_to_do(data: bytes) -> None:
    with pytest.raises(UsageError, match=r"mine\.json is no statement of an operator") as caught:
        read_operator_statement(data, "mine.json", verify)
    assert caught.value.next_command == "shoal operator sign PEER"


def test_peers_of_one_operator_are_one_wherever_they_are() -> None:
    here = whereabouts(["a"], ["192.0.2.1"], operators=[OPERATOR.peer])
    far = whereabouts(["b"], ["198.51.100.1"], seen=True, operators=[OPERATOR.peer])
    others = whereabouts(["c"], ["203.0.113.1"], operators=[MALLORY.peer])
    silent = whereabouts(["d"], ["203.0.114.1"])
    nowhere = whereabouts(["e"], [], operators=[OPERATOR.peer])
    assert closeness(here, far) == 2 and not apart(here, far)
    assert apart(here, others) and apart(here, silent) and apart(others, silent)
    assert not apart(together([others, far]), here)  # of several, one is enough
    assert not apart(together([others, nowhere]), here)
