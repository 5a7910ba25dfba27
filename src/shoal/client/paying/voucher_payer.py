"""Pays hops by vouchers: a payment channel to each node, and a voucher when a part of its window is owed.

A voucher is signed and written in a thread, beside sessions (:mod:`.payments`). No more is signed for than
was asked of a hop, and what has come back bounds it, with one window beyond. What is signed is on the disk
before it is sent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol

import msgspec
import trio

from shoal.client.paying.terms import HopBill
from shoal.errors import BadLedgerFile, ChannelClosed, PaymentStopped, RemoteProtocolError, ShoalError
from shoal.keyed_locks import KeyedLocks
from shoal.ledger.settling import PaymentBooks
from shoal.ledger.vouchers.keys import ChainKey, recover
from shoal.ledger.vouchers.offer import is_bound, offer_payment
from shoal.ledger.vouchers.payee import MICRO
from shoal.ledger.vouchers.payer import PayerAccount, amount_due, catch_up, note_signed, stop_reason
from shoal.ledger.vouchers.typed_data import ChainAddress, SigningDomain
from shoal.ledger.vouchers.voucher import Voucher, sign_voucher
from shoal.net.channel import Channel
from shoal.option_values import show_coins
from shoal.swarm.announcement import AskedPrice
from shoal.types import PeerId
from shoal.wire.paying import Paid, PaymentDue, PaymentOffer

LOOK_AGAIN_S = 0.05
GATHER_S = 1.0
"""How long what is owed waits for more, so that one voucher pays for sessions that follow each other."""
PAY_AT = 4
"""A part of the window, one of so many, that is paid for at once."""
RESULTS_WITHIN_S = 15.0
"""How long a hop may wait for a voucher until what it claims has come back."""

log = logging.getLogger(__name__)

_voucher = msgspec.msgpack.Decoder(Voucher)


class Funding(Protocol):
    """What opens payment channels; to be called from a thread, as it waits for the chain."""

    def __call__(self, payee: ChainAddress, node: PeerId, amount: int) -> PayerAccount:
        """Pay ``amount`` into a payment channel to ``payee`` for what ``node`` does. Raises ChainError,
        UsageError."""
        ...


class _Paying:
    """A payment channel while sessions are paid over it."""

    def __init__(self, peer: PeerId, account: PayerAccount, window: int) -> None:
        self.peer = peer
        """To whom it is offered: nobody else has anything to ask for over it."""
        self.account = account
        self.received_micro = max(account.received_micro, account.signed * MICRO)
        """What came of sessions that are over."""
        # Of sessions that were open when this machine stopped, nobody knows here what came.
        self.most_micro = self.received_micro + account.under_way * MICRO
        """What their hops may ask for them."""
        self.owes_before = account.under_way > 0
        """Whether those may be owed something still: the payee has not said yet what, or it is not paid."""
        self.window = window
        self.last_claim = -1
        self.pending: dict[Channel, PaymentDue] = {}
        """The newest of each channel to it."""
        self.over = self.paid_over = 0
        """Sessions that are over, and those of them that are paid for."""
        self.last: Channel | None = None
        """Over which one of those was."""
        self.busy = False
        self.signing = trio.Lock()

    def pays(self, bill: HopBill) -> bool:
        """Whether a hop's bill is paid over it."""
        return (bill.peer, bill.price.payee) == (self.peer, self.account.terms.payee)

    def is_much(self, micro: int) -> bool:
        """Whether so much in all is to be paid at once."""
        return (micro - self.account.signed * MICRO) * PAY_AT >= self.window * MICRO


class VoucherPayer:
    """A :class:`~shoal.client.paying.terms.Payer`.

    Args:
        client: the peer that asks.
        budget: what is paid into a payment channel, in the smallest unit.
        domain: the escrow contract that it pays over.
    """

    def __init__(
        self,
        client: PeerId,
        key: ChainKey,
        books: PaymentBooks,
        fund: Funding,
        domain: SigningDomain,
        budget: int,
    ) -> None:
        self._client = client
        self._key = key
        self._book = books.paying
        self._fund = fund
        self._domain = domain
        self._budget = budget
        self._paying: dict[bytes, _Paying] = {}
        self._to: dict[tuple[PeerId, bytes], _Paying] = {}  # by node and payee
        self._opening, self._funding = KeyedLocks[tuple[PeerId, bytes]](), trio.Lock()
        self._owed, self._much = trio.Event(), trio.Event()

    async def offer(self, peer: PeerId, price: AskedPrice) -> PaymentOffer:
        """How a session at ``peer`` will be paid for. See :class:`~shoal.client.paying.terms.Payer`."""
        if (price.chain_id, price.contract) != (self._domain.chain_id, self._domain.contract):
            raise PaymentStopped(
                f"this node is paid on chain {price.chain_id}, and chain.toml names another one",
                reason="other chain",
                check="use the chain.toml of those whom you want to pay",
            )
        paying = self._open_to(peer, price)
        if paying is None:
            async with self._opening.held((peer, price.payee)):
                paying = self._open_to(peer, price) or await self._opened(peer, price)
        await self._note_under_way(paying)
        made = partial(
            offer_payment, self._key, self._domain, paying.account.terms, self._client, price.amount
        )
        return await trio.to_thread.run_sync(made)

    def note_due(self, channel: Channel, message: PaymentDue) -> bool:
        """A hop says what it is owed. See :class:`~shoal.client.paying.terms.Payer`."""
        paying = self._paying.get(message.channel_id)
        if paying is None or channel.peer != paying.peer:
            raise RemoteProtocolError("a payment is due over a payment channel that was not offered")
        paying.pending[channel] = message
        self._owed.set()
        at_once = message.waiting or message.refused or paying.is_much(_micro(message))
        if paying.busy or not at_once:
            return False
        paying.busy = True
        return True

    def note_over(self, bills: Sequence[HopBill]) -> None:
        """A session is over. See :class:`~shoal.client.paying.terms.Payer`."""
        for bill in bills:
            if (paying := self._to.get((bill.peer, bill.price.payee))) is None:
                continue
            paying.received_micro += bill.came_micro
            paying.most_micro += bill.most_micro(paying.window * MICRO)
            paying.over += 1
            paying.last = bill.channel or paying.last
            self._owed.set()
            if paying.is_much(paying.received_micro):
                self._much.set()

    async def owing(self) -> list[bytes]:
        """Wait until something is owed. See :class:`~shoal.client.paying.terms.Payer`."""
        await self._owed.wait()
        with trio.move_on_after(GATHER_S):
            await self._much.wait()
        self._owed, self._much = trio.Event(), trio.Event()
        return self.owing_now()

    def owing_now(self) -> list[bytes]:
        """Where something is owed, and nobody pays it. See :class:`~shoal.client.paying.terms.Payer`."""
        found: list[bytes] = []
        for channel_id, paying in self._paying.items():
            if not paying.busy and (paying.pending or paying.paid_over < paying.over):
                paying.busy = True
                found.append(channel_id)
        return found

    async def pay_due(
        self, channel_id: bytes, bills: Callable[[], Sequence[HopBill]]
    ) -> Mapping[Channel, PaymentStopped]:
        """Pay what is due. See :class:`~shoal.client.paying.terms.Payer`."""
        paying, waiting = self._paying[channel_id], dict[Channel, PaymentStopped]()
        until = trio.current_time() + RESULTS_WITHIN_S
        try:
            while paying.pending or paying.paid_over < paying.over:
                if paying.paid_over < paying.over:
                    await self._pay_over(paying, bills)
                    continue
                channel = next(iter(paying.pending))
                message = paying.pending.pop(channel)
                try:
                    stopped = await self._pay(paying, channel, message, bills())
                except PaymentStopped as error:
                    stopped = error
                waiting.pop(channel, None)
                if stopped is None:
                    continue
                waiting[channel] = stopped
                if stopped.reason == "overcharged" and trio.current_time() < until:
                    # Most often its results are on their way yet, or with a slower hop.
                    await trio.sleep(LOOK_AGAIN_S)
                    paying.pending.setdefault(channel, message)
        finally:
            paying.busy = False
        return waiting

    async def _pay_over(self, paying: _Paying, bills: Callable[[], Sequence[HopBill]]) -> None:
        """Pay for what sessions have given that are over, and for what has come of those that go on."""
        over, last = paying.over, paying.last

        def left() -> list[HopBill]:
            return [bill for bill in bills() if paying.pays(bill)]

        micro = paying.received_micro + sum(bill.came_micro for bill in left())
        try:
            voucher = await self._sign(paying, micro, micro, b"", left)
            if voucher is not None and last is not None and not last.closed:
                with suppress(ChannelClosed):
                    await last.send(Paid(msgspec.msgpack.encode(voucher)))
        except ShoalError as error:
            log.warning("a session could not be paid for to the end: %s", error.message)
        # If that was cut off, it is paid for once more: the voucher is the same.
        paying.paid_over = over

    async def _pay(
        self, paying: _Paying, channel: Channel, message: PaymentDue, bills: Sequence[HopBill]
    ) -> PaymentStopped | None:
        claimed = _micro(message)
        ours = [bill.most_micro(paying.window * MICRO) for bill in bills if paying.pays(bill)]
        most = paying.most_micro + sum(ours)
        if message.refused:
            log.warning("%s did not take a voucher: %s", channel.peer, message.refused)
        voucher = await self._sign(paying, claimed, most, message.newest)
        if voucher is not None and (not message.newest or voucher.amount > _read(message.newest).amount):
            with suppress(ChannelClosed):
                await channel.send(Paid(msgspec.msgpack.encode(voucher)))
        account = paying.account
        if account.signed >= claimed // MICRO:
            paying.owes_before = False
        again, paying.last_claim = claimed == paying.last_claim, claimed
        why = stop_reason(account, claimed, most, paying.window, waiting=message.waiting, again=again)
        if why == "overcharged":
            return PaymentStopped(
                f"{channel.peer} says that it is owed {show_coins(claimed // MICRO)}; what was asked of it is"
                f" worth {show_coins(most // MICRO)}",
                reason=why,
                check="use another peer",
            )
        return self._spent(account) if why is not None else None

    async def _sign(
        self,
        paying: _Paying,
        claimed: int,
        most: int,
        newest: bytes,
        left: Callable[[], Sequence[HopBill]] | None = None,
    ) -> Voucher | None:
        """Sign for what is due, as far as the budget goes. Returns the newest voucher.

        Args:
            claimed: what is to be paid in all, in millionths; ``most``: what may be.
            newest: the payee's voucher.
            left: bills of sessions that go on; with none, nothing new is under way any more.
        """
        idle = False

        def change(account: PayerAccount) -> PayerAccount:
            if newest:
                account = catch_up(account, _read(newest), recover)
            amount = amount_due(account, claimed, most)
            if amount > account.signed:
                voucher = sign_voucher(self._key, account.domain, account.channel_id, amount)
                account = note_signed(account, voucher)
            received = max(account.received_micro, min(claimed, most))
            return msgspec.structs.replace(
                account, received_micro=received, under_way=0 if idle else account.under_way
            )

        async with paying.signing:
            idle = left is not None and not left() and not paying.owes_before
            run = partial(self._book.change, paying.account.channel_id, change)
            paying.account = await trio.to_thread.run_sync(run)
        return paying.account.voucher

    async def _note_under_way(self, paying: _Paying) -> None:
        """Put on the disk that a session is open, whose hop is owed up to its window if we are killed."""
        async with paying.signing:
            if not paying.account.under_way:
                window = partial(msgspec.structs.replace, under_way=paying.window)
                run = partial(self._book.change, paying.account.channel_id, window)
                paying.account = await trio.to_thread.run_sync(run)

    def _open_to(self, peer: PeerId, price: AskedPrice) -> _Paying | None:
        """The payment channel over which a node is paid now, if something is left in it."""
        paying = self._to.get((peer, price.payee))
        return paying if paying is not None and _usable(paying.account) else None

    async def _opened(self, peer: PeerId, price: AskedPrice) -> _Paying:
        """The payment channel to a node, with what is left in it; a new one where there is none."""
        payee = ChainAddress(price.payee)
        account = await trio.to_thread.run_sync(self._find, peer, payee)
        if account is None and self._budget:
            async with self._funding:  # the transactions of a key are sent one after another
                account = await trio.to_thread.run_sync(self._fund, payee, peer, self._budget)
        if account is None or not _usable(account):
            raise self._spent(account)
        paying = _Paying(peer, account, price.window)
        self._paying[account.channel_id] = self._to[peer, price.payee] = paying
        return paying

    def _find(self, peer: PeerId, payee: ChainAddress) -> PayerAccount | None:
        """An open payment channel to a node in which most is left. A spent one is not filled again, and one
        that is closing is offered to nobody."""
        found: list[PayerAccount] = []
        for channel_id in self._book.channel_ids():
            try:
                account = self._book.read(channel_id)
            except BadLedgerFile as error:
                log.warning("%s: it is passed over", error.message)
                continue
            terms = account.terms
            ours = account.domain == self._domain and terms.payer_signer == self._key.address
            theirs = terms.payee == payee and is_bound(terms, peer)
            if ours and theirs and account.deposit and account.closes_at is None:
                found.append(account)
        return max(found, key=lambda one: one.ceiling - one.signed, default=None)

    def _spent(self, account: PayerAccount | None) -> PaymentStopped:
        what = "nothing is to be paid"
        if account is not None:
            what = (
                f"of {show_coins(account.ceiling)} too little is left: {show_coins(account.signed)} are spent"
            )
        return PaymentStopped(
            f"{what} over the payment channel to this node",
            reason="budget spent",
            check="set pay-budget, or add to the payment channel",
            next_command="shoal wallet fund",
        )


def _usable(account: PayerAccount) -> bool:
    """Whether a session can be paid for over a payment channel."""
    return account.signed < account.ceiling and account.closes_at is None


def _micro(message: PaymentDue) -> int:
    """What a hop says that it is owed, in millionths."""
    return int.from_bytes(message.owed_micro, "big")


def _read(newest: bytes) -> Voucher:
    try:
        return _voucher.decode(newest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PaymentStopped("this peer shows what is no voucher", reason="forged") from error
