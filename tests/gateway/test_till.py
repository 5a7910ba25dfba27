"""The till of a gateway that is paid: what it takes, asks of the chain, claims, and gives back."""

from __future__ import annotations

import threading
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from shoal.errors import ChainError, OutOfResources
from shoal.gateway.errors import LimitReached
from shoal.gateway.payment import till as till_module
from shoal.gateway.payment import waiting as waiting_module
from shoal.gateway.payment.collecting import Collector, claim_due
from shoal.gateway.payment.refunds import Refunds
from shoal.gateway.payment.till import LOOK_S, Till
from shoal.ledger.vouchers import book as book_module
from shoal.ledger.vouchers.book import PaymentBook
from shoal.ledger.vouchers.keys import ChainKey, recover
from shoal.ledger.vouchers.payee import PayeeAccount
from shoal.ledger.vouchers.typed_data import ChainAddress
from shoal.ledger.vouchers.voucher import PaymentTerms, sign_voucher
from shoal.ledger.x402.messages import Payment, TokenAuthorization, read_payment
from shoal.ledger.x402.refusals import (
    CLOSING,
    DEPOSIT_FAILED,
    MISMATCH,
    OVER_DEPOSIT,
    REFUND_LATER,
    SIGNATURE,
    UNKNOWN_CHANNEL,
    PaymentNotTaken,
)
from shoal.ledger.x402.taking import tell
from shoal.testing.escrow import PretendedEscrow
from tests.ledger.x402.payments import (
    OFFER,
    OURS,
    PAYER,
    TERMS,
    account,
    header,
    paid,
    payment,
)


def test_what_is_owed_and_paid_is_claimed_when_it_is_worth_it_and_at_once_when_the_payer_closes() -> None:
    found = tell(paid(account(), OFFER.ceiling), 100)  # signed for 170
    owing = msgspec.structs.replace(found, owed_micro=100 * 10**6)
    assert claim_due(owing, worth=100) and not claim_due(owing, worth=101)
    assert claim_due(msgspec.structs.replace(owing, owed_micro=200 * 10**6), worth=170)
    assert not claim_due(msgspec.structs.replace(owing, owed_micro=200 * 10**6), worth=171)
    closing = msgspec.structs.replace(owing, closes_at=1.0)
    assert claim_due(closing, worth=10**9)
    assert not claim_due(msgspec.structs.replace(closing, redeemed=100), worth=0)


class Settlement:
    """x402's contract, as far as the till asks it: what is in escrow, as numbers."""

    def __init__(self, *kept: PayeeAccount) -> None:
        self.channels = {one.channel_id: PretendedEscrow(one.deposit, one.redeemed) for one in kept}
        self.away = self.refusing = self.poor = False
        self.asked = 0
        self.sent: list[str] = []
        self.hangs: set[bytes] = set()
        self.gate = threading.Event()

    def state(self, terms: PaymentTerms, channel_id: bytes) -> PretendedEscrow:
        self.asked += 1
        if channel_id in self.hangs:
            self.gate.wait(20)
        if self.away:
            raise ChainError("the chain's node does not answer", reason="down")
        return replace(self.channels.get(channel_id, PretendedEscrow()))

    def check_deposit(self, key: ChainKey, terms: PaymentTerms, amount: int, by: TokenAuthorization) -> None:
        if self.poor:
            raise ChainError("the contract refuses", reason="reverted")

    def deposit(self, key: ChainKey, terms: PaymentTerms, amount: int, by: TokenAuthorization) -> str:
        self.sent.append("deposit")
        if self.refusing:
            raise ChainError("the contract refuses", reason="reverted")
        if OURS.address in self.hangs:
            self.gate.wait(20)
        self.channels.setdefault(terms.channel_id(OFFER.domain), PretendedEscrow()).deposit += amount
        return "0x01"

    def claim(self, key: ChainKey, account: PayeeAccount) -> str:
        self.sent.append("claim")
        self.channels[account.channel_id].redeemed = account.owed
        return "0x02"

    def give_back(self, key: ChainKey, terms: PaymentTerms, amount: int) -> str:
        self.sent.append("give back")
        self.channels[terms.channel_id(OFFER.domain)].deposit -= amount
        return "0x03"


def till_of(folder: Path, *kept: PayeeAccount) -> Till:
    book = PaymentBook(folder, PayeeAccount)
    for one in kept:
        book.add(one)
    return Till(OFFER, Settlement(*kept), OURS, book)  # type: ignore[arg-type]


def chain_of(till: Till) -> Settlement:
    assert isinstance(till.client, Settlement)
    return till.client


async def sold(till: Till, **changes: Any) -> None:
    """A request that is paid for, and fails."""
    async with till.taken(signed_payment(**changes)):
        pass


async def test_a_voucher_over_an_escrow_that_its_payer_has_emptied_meanwhile_buys_nothing(
    tmp_path: Path,
) -> None:
    till = till_of(tmp_path, account())
    chain_of(till).channels[account().channel_id].deposit = 0  # while the gateway was away
    with pytest.raises(PaymentNotTaken) as refused:
        await sold(till)
    assert refused.value.reason == OVER_DEPOSIT


async def test_where_the_chain_is_away_what_it_said_counts_for_a_minute_and_then_nothing_is_sold(
    tmp_path: Path,
) -> None:
    till = till_of(tmp_path, account())
    await sold(till)
    chain_of(till).away = True
    await sold(till)
    assert chain_of(till).asked == 1
    till._looked[account().channel_id] -= LOOK_S + 1
    with pytest.raises(OutOfResources, match="chain"):
        await sold(till)
    chain_of(till).away = False
    chain_of(till).channels[account().channel_id].closes_at = till.clock()
    with pytest.raises(PaymentNotTaken) as refused:
        await sold(till)
    assert refused.value.reason == CLOSING


async def test_a_deposit_that_was_mined_and_not_noted_is_found_when_its_payer_comes_again(
    tmp_path: Path,
) -> None:
    till, channel_id = till_of(tmp_path), account().channel_id
    with pytest.raises(PaymentNotTaken) as refused:
        await sold(till)
    assert (refused.value.reason, till.book.channel_ids()) == (UNKNOWN_CHANNEL, [])
    # What the contract has paid out was served before: no voucher pays for it a second time.
    chain_of(till).channels[channel_id] = PretendedEscrow(deposit=5000, redeemed=170)
    with pytest.raises(PaymentNotTaken) as refused:
        await sold(till)
    assert refused.value.reason == MISMATCH
    kept = till.book.read(channel_id)
    assert (kept.deposit, kept.redeemed, kept.owed, kept.told) == (5000, 170, 170, 170)
    till.book.remove(channel_id)
    chain_of(till).channels[channel_id] = PretendedEscrow(deposit=5000)
    await sold(till)
    till.book.remove(channel_id)
    with pytest.raises(PaymentNotTaken) as refused:  # who wants it back is found too, and told what to sign
        await till.give_back(signed_payment(type="refund"))
    assert (refused.value.reason, till.book.channel_ids()) == (MISMATCH, [channel_id])


async def test_a_gateway_looks_at_all_it_is_paid_over_when_it_starts(tmp_path: Path) -> None:
    till = till_of(tmp_path, account())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Collector(till).run)
        with trio.fail_after(5):
            while not chain_of(till).asked:  # noqa: ASYNC110
                await trio.sleep(0.005)
        nursery.cancel_scope.cancel()


def signed_payment(amount: int = OFFER.ceiling, salt: bytes = bytes(32), **changes: Any) -> Payment:
    channel_id = salted(salt)
    sent, signed = payment(), sign_voucher(PAYER, OFFER.domain, channel_id, amount)
    sent["payload"]["channelConfig"]["salt"] = "0x" + salt.hex()
    sent["payload"]["voucher"]["channelId"] = "0x" + channel_id.hex()
    sent["payload"]["voucher"]["maxClaimableAmount"] = str(amount)
    sent["payload"]["voucher"]["signature"] = "0x" + signed.signature.hex()
    sent["payload"] |= changes
    return read_payment(header(sent))


def deposited(amount: int = 1000) -> dict[str, Any]:
    return {
        "type": "deposit",
        "deposit": {"amount": str(amount), "authorization": {"erc3009Authorization": ALLOWED}},
    }


async def test_where_no_account_can_be_kept_no_deposit_is_sent_and_one_that_is_refused_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    till = till_of(tmp_path)
    chain_of(till).refusing = True
    with pytest.raises(PaymentNotTaken) as refused:
        await sold(till, **deposited())
    assert (refused.value.reason, till.book.channel_ids()) == (DEPOSIT_FAILED, [])
    with monkeypatch.context() as full:
        full.setattr(book_module, "MAX_ACCOUNTS", 0)
        with pytest.raises(OutOfResources, match="accounts"):
            await sold(till, **deposited())
    assert chain_of(till).sent == ["deposit"]
    chain_of(till).refusing = False
    await sold(till, **deposited())
    assert till.book.read(account().channel_id).deposit == 1000


async def test_a_payment_channel_of_which_nothing_is_left_is_kept_no_more(tmp_path: Path) -> None:
    till, channel_id = till_of(tmp_path, account()), account().channel_id
    collector = Collector(till)
    assert await collector.collect(1) == 0
    chain_of(till).channels[channel_id] = PretendedEscrow(deposit=70, redeemed=70)
    async with AsyncExitStack() as before:
        till._looked[channel_id] = trio.current_time()
        await before.enter_async_context(till.taken(signed_payment()))
        await collector.collect(1)
        assert till.book.channel_ids() == [channel_id]  # a request is under way
    await collector.collect(1)
    assert till.book.channel_ids() == []


def salted(salt: bytes) -> bytes:
    return msgspec.structs.replace(TERMS, salt=salt).channel_id(OFFER.domain)


async def test_who_only_says_that_it_has_something_in_escrow_keeps_nobody_from_the_chain_who_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting_module, "ASKERS", 3)
    owing = account(owed_micro=100 * 10**6, voucher=paid(account(), OFFER.ceiling).voucher, told=100)
    till, others = till_of(tmp_path, owing), [bytes([n]) * 32 for n in (1, 2, 3, 4)]
    chain_of(till).hangs = set(map(salted, others))

    async def refused(salt: bytes, error: type[Exception]) -> None:
        with pytest.raises(error):
            await sold(till, salt=salt, **deposited())

    chain_of(till).poor = True
    async with trio.open_nursery() as nursery:
        for salt in others[:3]:
            nursery.start_soon(refused, salt, PaymentNotTaken)
        with trio.fail_after(10):
            while chain_of(till).asked < 3:  # noqa: ASYNC110
                await trio.sleep(0.005)
            await refused(others[3], LimitReached)
            await sold(till, amount=100 + OFFER.ceiling)
            assert await Collector(till).collect(1) == 1
        chain_of(till).gate.set()
    # Without the tokens, not even a place among those who wait for a transaction was taken.
    assert chain_of(till).sent == ["claim"]


async def test_a_payer_waits_a_minute_for_its_turn_and_what_is_owed_is_claimed_however_many_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting_module, "TURN_WITHIN_S", 0.02)
    owing = account(owed_micro=100 * 10**6, voucher=paid(account(), OFFER.ceiling).voucher, told=100)
    till, claimed = till_of(tmp_path, owing), list[int]()
    chain_of(till).hangs = {OURS.address}
    first, second = bytes([1]) * 32, bytes([2]) * 32

    async def claim() -> None:
        claimed.append(await Collector(till).collect(1))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(sold, till, salt=first, **deposited()))
        with trio.fail_after(10):
            while not chain_of(till).sent:  # noqa: ASYNC110
                await trio.sleep(0.005)
            with pytest.raises(LimitReached, match="slow"):
                await sold(till, salt=second, **deposited())
            monkeypatch.setattr(waiting_module, "SENDING", 0)
            with pytest.raises(LimitReached, match="others wait"):
                await sold(till, salt=second, **deposited())
            nursery.start_soon(claim)
            await trio.testing.wait_all_tasks_blocked(0.02)
        chain_of(till).gate.set()
    # What had begun is seen through, however long its payer waits.
    assert (claimed, chain_of(till).sent) == ([1], ["deposit", "claim"])
    assert till.book.read(salted(first)).deposit == 1000


async def test_a_deposit_a_request_and_a_refund_again_and_again_empty_no_wallet(tmp_path: Path) -> None:
    till, now = till_of(tmp_path), 10.0**9
    till.clock = lambda: now

    async def cycle(told: int) -> None:
        await sold(till, amount=told + OFFER.ceiling, **deposited())
        await till.give_back(signed_payment(amount=told, type="refund"))

    await cycle(0)
    with pytest.raises(PaymentNotTaken) as refused:
        await cycle(0)
    assert refused.value.reason == REFUND_LATER
    now += 3601
    await cycle(0)
    assert chain_of(till).sent == ["deposit", "give back", "deposit", "deposit", "give back"]


def test_refunds_that_nothing_was_earned_for_are_few_and_the_others_are_always_sent() -> None:
    refunds, served = Refunds(), account(owed_micro=1000 * 10**6)
    others = [msgspec.structs.replace(account(), channel_id=bytes([n]) * 32) for n in range(17)]
    for one in others[:16]:
        refunds.take(one, 1000, 0.0)
    with pytest.raises(PaymentNotTaken, match="16 such"):
        refunds.take(others[16], 1000, 3599.0)
    refunds.take(served, 1000, 1.0)
    with pytest.raises(PaymentNotTaken):  # it has brought in nothing since
        refunds.take(served, 1000, 2.0)
    refunds.take(msgspec.structs.replace(served, owed_micro=2000 * 10**6), 1000, 3.0)
    refunds.take(others[16], 1000, 3600.0)


ALLOWED = {"validAfter": "0", "validBefore": "9", "salt": "0x" + "00" * 32, "signature": "0x" + "11" * 65}
SMALL = {"amount": "999", "authorization": {"erc3009Authorization": ALLOWED}}


@pytest.mark.parametrize(
    ("kept", "changes", "reason"),
    [
        ((account(),), {}, "invalid_batch_settlement_evm_channel_busy"),
        ((), {}, "invalid_batch_settlement_evm_channel_not_found"),
        (
            (),
            {"type": "deposit", "deposit": SMALL},
            "invalid_batch_settlement_evm_deposit_below_min_deposit",
        ),
    ],
)
async def test_what_is_not_taken_now_is_refused_by_its_word_and_nothing_stays_open(
    tmp_path: Path, kept: tuple[PayeeAccount, ...], changes: dict[str, Any], reason: str
) -> None:
    till = till_of(tmp_path, *kept)
    async with AsyncExitStack() as before:
        if kept:
            await before.enter_async_context(till.taken(signed_payment()))
        with pytest.raises(PaymentNotTaken) as refused:
            async with till.taken(signed_payment(**changes)):
                pass
    assert (refused.value.reason, till._open) == (reason, {})


async def test_a_signature_is_checked_once_for_each_request_and_not_on_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[int] = []

    def noting(digest: bytes, signature: bytes) -> ChainAddress | None:
        checked.append(threading.get_ident())
        return recover(digest, signature)

    monkeypatch.setattr(till_module, "recover", noting)
    till = till_of(tmp_path, account())
    async with till.taken(signed_payment()) as purchase:
        assert purchase.account.paid == OFFER.ceiling
    assert len(checked) == 1
    assert threading.get_ident() not in checked


async def test_who_has_not_signed_keeps_no_request_of_the_payer_out() -> None:
    till = Till(OFFER, None, OURS, None)  # type: ignore[arg-type]
    forged = payment()
    forged["payload"] |= {"type": "refund"}
    with pytest.raises(PaymentNotTaken) as refused:
        await till.give_back(read_payment(header(forged)))
    assert (refused.value.reason, till._open) == (SIGNATURE, {})
