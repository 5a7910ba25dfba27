"""When a node redeems what it was paid with: worth its gas, in time, and not again and again in vain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import trio
from trio.testing import MockClock

from shoal.errors import ChainError
from shoal.ledger.settling import PaymentBooks
from shoal.ledger.vouchers.book import PaymentBook
from shoal.ledger.vouchers.keys import ChainKey
from shoal.ledger.vouchers.payee import PayeeAccount
from shoal.ledger.vouchers.redeeming import (
    FIRST_WAIT_S,
    LONGEST_WAIT_S,
    REDEEM_GAS,
    next_try,
    note_failed,
    note_redeemed,
    redeem_reason,
)
from shoal.ledger.vouchers.voucher import PaymentTerms, escrow_domain, sign_voucher
from shoal.node.paying.redeemer import LOOK_EVERY_S, Redeemer

PAYER, PAYEE = ChainKey.from_secret(b"\1" * 32), ChainKey.from_secret(b"\2" * 32)
DOMAIN = escrow_domain(31337, b"\x42" * 20)
DAY_S = 86_400
replace = msgspec.structs.replace


def paid(amount: int, *, salt: int = 0, payee: ChainKey = PAYEE, **changes: object) -> PayeeAccount:
    terms = PaymentTerms(
        payer=PAYER.address,
        payer_signer=PAYER.address,
        payee=payee.address,
        payee_signer=payee.address,
        salt=bytes([salt]) * 32,
    )
    channel_id = terms.channel_id(DOMAIN)
    account = PayeeAccount(
        terms=terms,
        domain=DOMAIN,
        channel_id=channel_id,
        deposit=10_000,
        window=500,
        voucher=sign_voucher(PAYER, DOMAIN, channel_id, amount),
    )
    return replace(account, **changes)


def reason(account: PayeeAccount, now: float = 0.0, *, serving: bool = False) -> str | None:
    return redeem_reason(account, cost=10, at_least=50, now=now, serving=serving)


def test_a_voucher_is_redeemed_once_it_is_worth_the_gas_so_many_times() -> None:
    assert reason(paid(499)) is None
    assert reason(paid(500)) == "worth it"
    assert reason(paid(900, redeemed=401)) is None
    assert reason(paid(500, redeemed=500)) is None
    assert reason(replace(paid(500), voucher=None)) is None
    # With nothing left in escrow, or less than the voucher says, the contract would refuse it.
    assert reason(paid(500, deposit=499)) is None


def test_where_the_payer_closes_the_last_voucher_is_redeemed_in_time_if_it_is_worth_its_gas() -> None:
    closing = paid(499, closes_at=DAY_S)
    assert reason(closing) == "closing"
    assert reason(paid(10, closes_at=DAY_S)) is None
    # While a session is open another voucher comes, but only until half of the delay is over.
    assert reason(closing, serving=True) is None
    assert reason(closing, now=DAY_S / 2 - 1, serving=True) is None
    assert reason(closing, now=DAY_S / 2, serving=True) == "closing"
    assert reason(paid(500, closes_at=DAY_S), serving=True) == "worth it"


def test_what_fails_is_tried_again_later_and_later_but_often_enough_before_the_end() -> None:
    account, now = paid(500), 0.0
    waits: list[float] = []
    for _ in range(9):
        account = note_failed(account, "away", now)
        waits.append(next_try(account) - now)
        assert reason(account, next_try(account) - 1) is None
        now = next_try(account)
        assert reason(account, now) == "worth it"
    assert waits[:3] == [FIRST_WAIT_S, 2 * FIRST_WAIT_S, 4 * FIRST_WAIT_S]
    assert waits[-1] == LONGEST_WAIT_S
    late = replace(account, closes_at=now + 8 * FIRST_WAIT_S)
    assert next_try(note_failed(late, "away", now)) == now + FIRST_WAIT_S
    assert reason(note_redeemed(note_failed(account, "away", now), 0), now) == "worth it"


def test_a_try_that_was_noted_by_a_clock_ahead_of_ours_holds_nothing_up() -> None:
    account = note_failed(paid(500), "away", 9e9)
    assert reason(account, 1000.0) == "worth it"
    again = note_failed(account, "away", 1000.0)
    assert reason(again, 1001.0) is None


class Chain:
    """One that pays out, while it is there."""

    def __init__(self, book: PaymentBook[PayeeAccount]) -> None:
        self.book = book
        self.fails = ""
        self.goes: set[bytes] = set()
        """What the node drops while it is redeemed by hand."""
        self.asked = 0
        self.redeemed: list[bytes] = []

    def gas_price(self) -> int:
        self.asked += 1
        if self.fails:
            raise ChainError("no answer", reason=self.fails)
        return 1

    def redeem(self, channel_id: bytes) -> PayeeAccount:
        self.redeemed.append(channel_id)
        if channel_id in self.goes:
            self.book.remove(channel_id)
            raise ChainError("the contract refuses: stale", reason="stale")
        return self.book.change(channel_id, lambda one: note_redeemed(one, one.paid))


@pytest.fixture
def book(tmp_path: Path) -> PaymentBook[PayeeAccount]:
    return PaymentBooks.below(tmp_path).paid


@pytest.fixture
def wall() -> Callable[[], float]:
    return lambda: 1_000_000.0 + trio.current_time()


WORTH = REDEEM_GAS * 50


def idle(_: bytes) -> bool:
    return False


async def test_a_node_redeems_closing_channels_first_and_those_of_its_wallet_alone(
    book: PaymentBook[PayeeAccount], wall: Callable[[], float]
) -> None:
    rich = {"deposit": 1 << 60}
    closing = paid(REDEEM_GAS * 2, salt=1, closes_at=2e6, **rich)
    large, small = paid(WORTH * 3, salt=2, **rich), paid(WORTH, salt=3, **rich)
    others = [paid(WORTH - 1, salt=4, **rich), paid(WORTH, salt=5, payee=PAYER, **rich)]
    for account in (small, large, closing, *others):
        book.add(account)
    chain = Chain(book)
    redeemer = Redeemer(book, chain, DOMAIN, PAYEE.address, 50, wall)
    assert await redeemer.look(idle) == 3
    assert chain.redeemed == [one.channel_id for one in (closing, large, small)]
    assert await redeemer.look(idle) == 0


async def test_a_failure_that_the_book_does_not_take_keeps_no_other_from_being_redeemed(
    book: PaymentBook[PayeeAccount], wall: Callable[[], float]
) -> None:
    gone, due = paid(WORTH * 2, salt=1, deposit=1 << 60), paid(WORTH, salt=2, deposit=1 << 60)
    book.add(gone)
    book.add(due)
    chain = Chain(book)
    chain.goes.add(gone.channel_id)
    assert await Redeemer(book, chain, DOMAIN, PAYEE.address, 50, wall).look(idle) == 1
    assert chain.redeemed == [gone.channel_id, due.channel_id]


async def test_while_the_chain_is_away_it_is_asked_ever_less_and_pays_once_it_is_back(
    book: PaymentBook[PayeeAccount], wall: Callable[[], float], autojump_clock: MockClock
) -> None:
    account = paid(WORTH, deposit=1 << 60)
    book.add(account)
    chain = Chain(book)
    chain.fails = "down"
    redeemer = Redeemer(book, chain, DOMAIN, PAYEE.address, 50, wall)
    autojump_clock.autojump_threshold = 0.05
    async with trio.open_nursery() as nursery:
        nursery.start_soon(redeemer.run, idle)
        await trio.sleep(30 * LOOK_EVERY_S)
        kept = book.read(account.channel_id)
        assert kept.redeem_failed is not None
        assert 4 <= chain.asked == kept.redeem_failed.times <= 6
        chain.fails = ""
        await trio.sleep(LONGEST_WAIT_S)
        nursery.cancel_scope.cancel()
    assert chain.redeemed == [account.channel_id]
    assert book.read(account.channel_id).redeem_failed is None
