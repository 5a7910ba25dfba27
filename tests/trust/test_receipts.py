"""The rules of receipts: whatever was changed, left out, moved or said twice is noticed, and told of whom."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import NotAllowed, RemoteProtocolError, UsageError
from shoal.executor.codecs import encode, split_rows
from shoal.net.identity import Identity, verify
from shoal.trust.answer import (
    MAX_FILE,
    HopReceipts,
    KeptAnswer,
    KeptWindow,
    ReceiptFault,
    check_answer,
    find_contradiction,
    read_kept_answer,
    sent_masks,
    uncompared,
)
from shoal.trust.receipt import Work, contradict, sign_windows, whole_receipts
from shoal.trust.rows import EMPTY, HASH, WINDOW, RowLog, root, row_hashes, windows
from shoal.trust.signing import MAX_QUESTIONS, Signing, WorkLog
from shoal.types import Codec
from shoal.wire.messages import SignedWindow

TOKENS = 70
PEERS = [Identity.from_seed(bytes([number]) * 32) for number in range(3)]
SPANS = [(0, 2), (2, 3), (3, 6)]
DIGEST = "sha256:" + "a" * 64


def leaves(seed: int, tokens: int = TOKENS) -> RowLog:
    """Hashes of rows that there never were."""
    log = RowLog()
    log.note(0, tokens, b"".join(blake3(bytes([seed, n])).digest() for n in range(tokens)))
    return log


LINKS = [leaves(number) for number in range(4)]
"""What went from the client to the first hop, and on, and back."""


def an_answer(
    *, nonce: bytes = b"n" * 16, session: bytes = b"s" * 16, numerics: str = "n1/int8/auto/rows",
    links: Sequence[tuple[RowLog, RowLog]] | None = None,
) -> KeptAnswer:  # fmt: skip
    """An answer that three honest hops have signed, or hops that were given and sent what ``links`` says."""
    empty = KeptAnswer(
        model="fish",
        digest=DIGEST,
        n_blocks=6,
        width=64,
        numerics=numerics,
        codec="float32",
        session=session,
        nonce=nonce,
        token_ids=tuple(range(TOKENS + 1)),
        prompt_tokens=30,
        tokens=TOKENS,
        sent=b"".join(LINKS[0].leaf(n) for n in range(TOKENS)),
        hops=tuple(
            HopReceipts(peer.peer, start, end, bytes([index]) * 16, ())
            for index, (peer, (start, end)) in enumerate(zip(PEERS, SPANS, strict=True))
        ),
    )
    hops: list[HopReceipts] = []
    for index, hop in enumerate(empty.hops):
        came, went = links[index] if links else (LINKS[index], LINKS[index + 1])
        signed = sign_windows(empty.work(index), TOKENS, came, went, PEERS[index].sign)
        kept = tuple(KeptWindow(one.sent, one.came, one.went, one.signature) for one in signed)
        hops.append(msgspec.structs.replace(hop, receipts=kept))
    return msgspec.structs.replace(empty, hops=tuple(hops))


HONEST = an_answer()


def with_hop(answer: KeptAnswer, index: int, **changes: object) -> KeptAnswer:
    hops = list(answer.hops)
    hops[index] = msgspec.structs.replace(hops[index], **changes)
    return msgspec.structs.replace(answer, hops=tuple(hops))


def faults(answer: KeptAnswer, received: RowLog | None = None) -> list[ReceiptFault]:
    return check_answer(answer, verify, received)


def kinds(answer: KeptAnswer, received: RowLog | None = None) -> list[Any]:
    return [(fault.kind, fault.hops, fault.window) for fault in faults(answer, received)]


def test_honest_receipts_hold_and_survive_a_file() -> None:
    assert kinds(HONEST, LINKS[3]) == []
    assert uncompared(HONEST) == 0
    again = read_kept_answer(HONEST.encoded(), "answer.json")
    assert again == HONEST
    assert kinds(again) == []


# ---- bad input ----


@pytest.mark.parametrize("field", ["came", "went", "signature", "sent"])
@pytest.mark.parametrize("window", [0, 2])
def test_a_forged_receipt_is_told_by_its_window(field: str, window: int) -> None:
    receipts = list(HONEST.hops[1].receipts)
    value = getattr(receipts[window], field)
    forged = value ^ 1 if isinstance(value, int) else bytes([value[0] ^ 1]) + value[1:]
    receipts[window] = msgspec.structs.replace(receipts[window], **{field: forged})
    answer = with_hop(HONEST, 1, receipts=tuple(receipts))
    assert kinds(answer) == [("signature", (1,), window)]
    assert PEERS[1].peer in faults(answer)[0].what


def test_receipts_that_another_has_signed_are_forged() -> None:
    assert kinds(with_hop(HONEST, 1, peer=PEERS[0].peer)) == [("signature", (1,), 0)]


@pytest.mark.parametrize(
    "changes",
    [
        {"nonce": b"x" * 16},
        {"session": b"x" * 16},
        {"digest": "sha256:" + "b" * 64},
        {"numerics": "n1/int8/int8/rows"},
        {"codec": "bfloat16"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_receipts_replayed_from_another_question_session_or_model_are_refused(
    changes: dict[str, object],
) -> None:
    assert kinds(msgspec.structs.replace(HONEST, **changes)) == [("signature", (n,), 0) for n in range(3)]


def test_receipts_of_another_opening_are_refused() -> None:
    assert kinds(with_hop(HONEST, 2, opening=b"x" * 16)) == [("signature", (2,), 0)]


def test_reordered_receipts_are_refused() -> None:
    first, second, last = HONEST.hops[1].receipts
    assert kinds(with_hop(HONEST, 1, receipts=(second, first, last))) == [("signature", (1,), 0)]
    assert kinds(with_hop(HONEST, 1, receipts=(first, last, second))) == [("signature", (1,), 1)]


def test_hops_in_another_order_are_no_route() -> None:
    one, two, three = HONEST.hops
    swapped = msgspec.structs.replace(HONEST, hops=(two, one, three))
    assert {kind for kind, _, _ in kinds(swapped)} == {"route", "signature"}


@pytest.mark.parametrize("kept", [slice(0, 2), slice(1, 3)])
def test_cut_receipts_are_refused(kept: slice) -> None:
    answer = with_hop(HONEST, 1, receipts=HONEST.hops[1].receipts[kept])
    assert kinds(answer) == [("cut", (1,), 2)]


def test_an_answer_cut_to_fewer_tokens_is_not_what_was_signed() -> None:
    shorter = msgspec.structs.replace(HONEST, tokens=TOKENS - 1, sent=HONEST.sent[:-HASH])
    assert kinds(shorter) == [("signature", (n,), 0) for n in range(3)]


def test_a_hop_that_gave_none_is_named_with_its_reason() -> None:
    answer = with_hop(HONEST, 1, receipts=(), missing="too busy")
    assert kinds(answer) == [("missing", (1,), None)]
    assert "too busy" in faults(answer)[0].what


def test_more_receipts_than_there_are_windows_are_refused() -> None:
    answer = with_hop(HONEST, 1, receipts=HONEST.hops[1].receipts * 1000)
    assert kinds(answer) == [("cut", (1,), 3)]


# ---- who says what of whom ----


def changed(log: RowLog, position: int) -> RowLog:
    other = [log.leaf(n) for n in range(len(log))]
    other[position] = b"?" * HASH
    return RowLog(b"".join(other))


def contradicted() -> KeptAnswer:
    """The honest answer's question, to which the hop in the middle has signed something else."""
    return an_answer(links=[(LINKS[0], LINKS[1]), (LINKS[1], changed(LINKS[2], 40)), (LINKS[2], LINKS[3])])


def test_two_neighbours_of_which_one_lies_are_both_named_and_nobody_else() -> None:
    lie = changed(LINKS[2], 40)
    answer = an_answer(links=[(LINKS[0], LINKS[1]), (LINKS[1], lie), (LINKS[2], LINKS[3])])
    assert kinds(answer, LINKS[3]) == [("links", (1, 2), 1)]


@pytest.mark.parametrize(
    ("entered", "expected"),
    [
        (0, [("links", (1, 2), 0)]),
        (20, [("links", (), 0), ("links", (1, 2), 1)]),
        (32, [("links", (), 0), ("links", (1, 2), 1)]),
        (33, [("links", (), 0)]),
    ],
)
def test_what_came_from_a_lost_hop_is_held_against_nobody_who_is_there(
    entered: int, expected: list[Any]
) -> None:
    came = changed(changed(LINKS[2], 5), 40)
    answer = an_answer(links=[(LINKS[0], LINKS[1]), (LINKS[1], LINKS[2]), (came, LINKS[3])])
    replaced = with_hop(answer, 1, entered=entered)
    assert kinds(replaced, LINKS[3]) == expected
    assert ("a hop that was lost" in faults(replaced)[0].what) == bool(entered)
    assert kinds(with_hop(HONEST, 1, entered=entered), LINKS[3]) == []


def test_the_first_hop_that_denies_what_it_was_sent_is_alone_to_blame() -> None:
    answer = an_answer(links=[(changed(LINKS[0], 3), LINKS[1]), (LINKS[1], LINKS[2]), (LINKS[2], LINKS[3])])
    assert kinds(answer, LINKS[3]) == [("sent", (0,), 0)]


def test_the_last_hop_that_denies_what_it_sent_is_alone_to_blame() -> None:
    assert kinds(HONEST, changed(LINKS[3], 69)) == [("received", (2,), 2)]


def test_the_last_hop_that_leaves_out_what_the_client_was_given_is_alone_to_blame() -> None:
    links = [(LINKS[0], LINKS[1]), (LINKS[1], LINKS[2]), (LINKS[2], RowLog(bytes(HASH * TOKENS)))]
    silent = an_answer(links=links)
    assert kinds(silent, LINKS[3]) == [("received", (2,), 0)]
    replaced = RowLog(b"".join(LINKS[3].leaf(n) for n in range(TOKENS)))
    replaced.forget(TOKENS)
    assert kinds(silent, replaced) == []


def signing(index: int, window: int, sent: int, went: RowLog | None = None) -> KeptAnswer:
    """The honest answer, of which one hop has signed one window for other positions."""
    went = went or LINKS[index + 1]
    receipts, log = list[KeptWindow](), HONEST.hops[index].receipts
    for number in range(len(log)):
        mask, top = (
            (sent, went.window(number)[1]) if number == window else (log[number].sent, log[number].went)
        )
        given = [*receipts, msgspec.structs.replace(log[number], sent=mask, went=top)]
        made = whole_receipts(
            HONEST.work(index), TOKENS, [SignedWindow(o.sent, o.came, o.went, b"") for o in given]
        )
        receipts.append(msgspec.structs.replace(given[-1], signature=PEERS[index].sign(made[-1].signed)))
    return with_hop(HONEST, index, receipts=tuple(receipts))


def without(log: RowLog, *positions: int) -> RowLog:
    return RowLog(b"".join(EMPTY if n in positions else log.leaf(n) for n in range(TOKENS)))


def test_a_last_hop_that_signs_for_positions_it_did_not_send_cannot_forge_those_that_it_did() -> None:
    """It sends forged rows, and signs honest ones for one position more than the client has."""
    client_has = without(LINKS[3], 3)
    honest = an_answer(links=[(LINKS[0], LINKS[1]), (LINKS[1], LINKS[2]), (LINKS[2], client_has)])
    assert kinds(honest, client_has) == []
    forged = without(changed(LINKS[3], 20), 3)
    assert kinds(HONEST, forged) == [("received", (2,), 0)]


@pytest.mark.parametrize("index", [1, 2])
def test_a_hop_that_signs_for_tokens_that_there_are_not_is_told(index: int) -> None:
    beyond = signing(index, 2, (1 << 7) - 1)
    assert kinds(beyond) == [("links" if index == 1 else "received", (index,), 2)]
    assert "that there are not" in faults(beyond)[0].what


def test_a_middle_hop_that_signs_for_no_positions_is_told_even_if_the_next_shows_nothing() -> None:
    silent = signing(1, 0, 0, RowLog())
    assert kinds(silent, LINKS[3]) == [("links", (1,), 0)]
    assert ("links", (1,), 0) in kinds(with_hop(silent, 2, receipts=(), missing="gone"), LINKS[3])


def test_the_positions_that_hops_must_sign_for_are_the_clients_own_knowledge() -> None:
    whole = [(1 << 32) - 1, (1 << 32) - 1, (1 << 6) - 1]
    assert sent_masks(HONEST, 1, RowLog()) == sent_masks(HONEST, 2, LINKS[3]) == whole
    assert sent_masks(HONEST, 2, without(LINKS[3], 0, 69)) == [whole[0] - 1, whole[1], (1 << 5) - 1]


def test_rows_that_an_exact_hop_leaves_out_are_held_against_it() -> None:
    holes = RowLog(b"".join(EMPTY if n == 5 else LINKS[2].leaf(n) for n in range(TOKENS)))
    links = [(LINKS[0], LINKS[1]), (LINKS[1], holes), (LINKS[2], LINKS[3])]
    assert kinds(an_answer(links=links)) == [("links", (1,), 0)]
    elsewhere = an_answer(links=links, numerics="n1/bf16/auto/batch")
    assert (kinds(elsewhere), uncompared(elsewhere)) == ([], 1)


def test_a_hop_that_signs_one_question_twice_has_proven_its_lie() -> None:
    proof = find_contradiction(HONEST, contradicted(), verify)
    assert proof is not None
    assert (proof.peer, proof.one.window) == (PEERS[1].peer, 1)


def test_an_accusation_without_the_accuseds_signature_proves_nothing() -> None:
    receipts = list(HONEST.hops[1].receipts)
    receipts[1] = msgspec.structs.replace(receipts[1], went=b"?" * HASH)
    assert find_contradiction(HONEST, with_hop(HONEST, 1, receipts=tuple(receipts)), verify) is None


def test_answers_to_two_questions_contradict_nothing() -> None:
    other = an_answer(nonce=b"o" * 16, links=[(LINKS[1], LINKS[2])] * 3)
    assert find_contradiction(HONEST, other, verify) is None
    with pytest.raises(RemoteProtocolError, match="same question"):
        contradict(HONEST.receipts(0)[0], other.receipts(0)[0])


# ---- what a hop signs, and for whom ----


def test_a_question_is_answered_once_and_repeated_as_it_was() -> None:
    signing = Signing()
    assert signing.begin(b"a" * 16)
    with pytest.raises(NotAllowed, match="before"):
        signing.begin(b"a" * 16)  # it is being answered
    signing.signed(b"a" * 16, sign_windows(HONEST.work(0), TOKENS, LINKS[0], LINKS[1], PEERS[0].sign))
    assert not signing.begin(b"a" * 16)
    assert len(signing.since(1, 1)) == 1 and len(signing.since(1, 99)) == 2 and signing.since(9, 9) == ()
    assert signing.begin(b"b" * 16)
    with pytest.raises(NotAllowed, match="before"):
        signing.begin(b"a" * 16)


def test_questions_of_one_session_are_bounded() -> None:
    signing = Signing()
    for number in range(MAX_QUESTIONS):
        signing.begin(bytes([number]) * 16)
    with pytest.raises(NotAllowed, match="64 times"):
        signing.begin(b"x" * 16)


def test_rows_that_were_never_computed_are_not_signed_for() -> None:
    log = WorkLog()
    log.note(0, "float32", 2, 1, bytes(8), 2, bytes(8))
    assert len(log.copy(2).came) == 2
    with pytest.raises(NotAllowed, match="of which 2 have been computed"):
        log.copy(3)
    log.note(0, "bfloat16", 1, 1, bytes(2), 0, b"")  # it begins again
    assert log.copy(1).went.window(0) == (0, root(b""))


def test_a_receipt_takes_less_than_250_bytes_of_a_message() -> None:
    signed = sign_windows(HONEST.work(0), TOKENS, LINKS[0], LINKS[1], PEERS[0].sign)
    assert max(len(msgspec.msgpack.encode(one)) for one in signed) <= 150


# ---- rows, trees and windows ----


@pytest.mark.parametrize("codec", get_args(Codec))
@settings(deadline=None)
@given(rows=st.integers(1, 9), width=st.sampled_from([1, 63, 64, 65, 576]))
def test_a_row_has_one_hash_alone_and_among_others(codec: Codec, rows: int, width: int) -> None:
    hidden = np.random.default_rng(rows).standard_normal((rows, width), np.float32)
    payload = encode(hidden, codec)
    alone = [row_hashes(row, codec, 1, width) for row in split_rows(payload, codec, rows, width)]
    assert row_hashes(payload, codec, rows, width) == b"".join(alone)
    assert [row_hashes(encode(row[None], codec), codec, 1, width) for row in hidden] == alone


def test_a_tree_has_five_levels_whatever_is_in_it() -> None:
    level = [LINKS[0].leaf(n) if n < 6 else EMPTY for n in range(WINDOW)]
    while len(level) > 1:
        level = [blake3(level[n] + level[n + 1]).digest() for n in range(0, len(level), 2)]
    assert root(b"".join(LINKS[0].leaf(n) for n in range(6))) == level[0]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 90), st.integers(1, 40)), min_size=1, max_size=12))
def test_a_log_holds_what_was_noted_last_of_each_position(steps: list[tuple[int, int]]) -> None:
    log, expected = RowLog(), list[bytes]()
    for position, tokens in steps:
        at = min(position, len(expected))
        rows = [os.urandom(HASH) for _ in range(tokens)]
        log.note(at, tokens, b"".join(rows))
        expected[at:] = rows
    assert [log.leaf(n) for n in range(len(log) + 1)] == [*expected, EMPTY]
    for number in range(windows(len(log))):
        part = expected[number * WINDOW : (number + 1) * WINDOW]
        assert log.window(number) == ((1 << len(part)) - 1, root(b"".join(part)))
        assert log.window(number, 1)[1] == root(part[0])


def test_each_receipt_stands_on_the_one_before() -> None:
    work = Work(b"s" * 16, b"n" * 16, b"o" * 16, 0, 0, 2, DIGEST, "n1/int8/auto/rows", "float32")
    signed = sign_windows(work, TOKENS, LINKS[0], LINKS[1], PEERS[0].sign)
    found = whole_receipts(work, TOKENS, signed)
    assert [r.before for r in found] == [EMPTY, found[0].hash, found[1].hash]


# ---- files ----


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "malformed|truncated|empty"),
        (b"[]", "Expected `object`"),
        (b"[" * 100_000, "recursion|nested|truncated"),
        (b'{"kind": "else"}', "kind|missing"),
        (b"x" * (MAX_FILE + 1), "at most"),
        (b"\xff\xfe", "malformed|invalid|utf"),
    ],
    ids=["nothing", "a-list", "deep", "another-kind", "huge", "no-text"],
)
def test_what_is_no_answer_is_refused_and_says_so(data: bytes, why: str) -> None:
    with pytest.raises(UsageError, match=f"(?i)answer.json is no answer with receipts: .*({why})"):
        read_kept_answer(data, "answer.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": TOKENS + 2},
        {"prompt_tokens": TOKENS + 2},
        {"sent": b"x" * 32},
        {"n_blocks": 5},
        {"numerics": "n9/int8/auto/rows"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_an_answer_that_cannot_be_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="no answer with receipts"):
        read_kept_answer(msgspec.structs.replace(HONEST, **changes).encoded(), "answer.json")


def test_an_answer_is_found_in_a_gateways_response() -> None:
    response = {"id": "chatcmpl-1", "shoal": {"receipts": msgspec.to_builtins(HONEST)}}
    assert read_kept_answer(msgspec.json.encode(response), "response.json") == HONEST
