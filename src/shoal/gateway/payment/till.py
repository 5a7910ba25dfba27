"""The payment channels over which this gateway is paid: who may ask, and what it was charged.

What was signed, and what was told, is on the disk before it counts. What the chain last said of a payment
channel counts for a minute.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from math import inf

import msgspec
import trio

from shoal.errors import ChainError, OutOfResources, UsageError
from shoal.gateway.payment.refunds import Refunds
from shoal.gateway.payment.waiting import ChainCaller, ChainTurns, on_disk
from shoal.ledger.vouchers.book import MAX_ACCOUNTS, PaymentBook
from shoal.ledger.vouchers.keys import ChainKey, recover
from shoal.ledger.vouchers.payee import MICRO, Escrowed, PayeeAccount, Recover, note_escrow
from shoal.ledger.vouchers.typed_data import show_address
from shoal.ledger.vouchers.voucher import PaymentTerms, Voucher
from shoal.ledger.x402.messages import (
    DepositPayment,
    Payment,
    PaymentPayload,
    RefundRequest,
    SignedVoucher,
    encoded,
    terms_of,
)
from shoal.ledger.x402.offer import GatewayOffer, response
from shoal.ledger.x402.refusals import (
    BUSY,
    DEPOSIT_FAILED,
    SMALL_DEPOSIT,
    UNKNOWN_CHANNEL,
    WRONG_CHANNEL,
    PaymentNotTaken,
)
from shoal.ledger.x402.settlement import SettlementClient
from shoal.ledger.x402.taking import (
    begin_anew,
    charge_after,
    charge_before,
    check_refund,
    check_signed,
    pay_request,
    tell,
)

LOOK_S = 60.0
"""How old what the chain has said of a payment channel may be when a request is paid over it."""
MAX_LOOKED = MAX_ACCOUNTS

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _UnderWay:
    """What is going on over one payment channel."""

    deciding: bool = False
    """Whether a request is before its head, so that nobody knows yet what the next voucher is to be for."""
    streams: int = 0
    """Requests that were told and are not counted yet."""


@dataclass(frozen=True, slots=True)
class _Signed:
    """A voucher that its payer has signed."""

    terms: PaymentTerms
    voucher: Voucher
    recover: Recover
    """Who has signed it, without checking the signature again for each rule that asks."""


@dataclass(slots=True)
class Purchase:
    """One request that was paid for. ``spend`` counts its tokens; :meth:`Till.taken` closes it."""

    till: Till
    account: PayeeAccount
    transaction: str
    """Of the deposit that came with it, or nothing."""
    tokens: int = 0
    _told: bool = False
    _counted: bool = False

    @property
    def channel_id(self) -> bytes:
        """The payment channel over which it is paid."""
        return self.account.channel_id

    def spend(self, tokens: int) -> None:
        """So many tokens more, of the prompt or the answer, were used."""
        self.tokens = min(self.tokens + tokens, self.till.offer.most_tokens)

    async def head(self, *, well: bool, streamed: bool) -> str:
        """What the answer's head tells the client that it was charged: of ``PAYMENT-RESPONSE``.

        Args:
            well: whether it is answered; else nothing is charged.
            streamed: whether its tokens are counted only later.
        """
        charged = 0
        if well:
            charged = await self.till.charge(self, streamed=streamed)
        self._told, self._counted = well, not streamed or not well
        self.till.decided(self.channel_id, streams=1 if well and streamed else 0)
        return encoded(response(self.till.offer, self.account, charged, self.transaction))

    async def end(self) -> None:
        """Count what a stream has used, or forget a request that has said nothing."""
        if self._told and not self._counted:
            self._counted = True
            await self.till.count(self)
        elif not self._told and not self._counted:
            self.till.decided(self.channel_id)


@dataclass(slots=True)
class Till:
    """Takes payments. Once made, :meth:`shoal.gateway.payment.collecting.Collector.run` claims them."""

    offer: GatewayOffer
    client: SettlementClient
    key: ChainKey
    book: PaymentBook[PayeeAccount]
    clock: Callable[[], float] = time.time
    _open: dict[bytes, _UnderWay] = field(default_factory=dict[bytes, _UnderWay])
    """As large as there are requests under way."""
    chain: ChainTurns = field(default_factory=ChainTurns)
    _looked: OrderedDict[bytes, float] = field(default_factory=OrderedDict[bytes, float])
    """When the chain was last asked, in this process, for what is in a payment channel."""
    _refunds: Refunds = field(default_factory=Refunds)

    @asynccontextmanager
    async def taken(self, payment: Payment) -> AsyncGenerator[Purchase]:
        """Take the payment of one request, which is answered in the block.

        Raises:
            PaymentNotTaken: it is not taken, in x402's words why. Nothing was charged.
            LimitReached: too many wait for the chain.
            OutOfResources: the chain or the accounts cannot be used now; the log says why.
        """
        self.offer.check_accepted(payment.accepted)
        signed = await self._signed(payment)
        channel_id = signed.voucher.channel_id
        self._decide(channel_id)
        try:
            account, transaction = await self._paid(payment.payload, signed)
        except BaseException:
            self.decided(channel_id)
            raise
        purchase = Purchase(self, account, transaction)
        try:
            yield purchase
        finally:
            with trio.CancelScope(shield=True):  # what was used is owed, whoever has gone
                await purchase.end()

    async def give_back(self, payment: Payment) -> str:
        """Claim what was served, and give the payer the rest: what ``PAYMENT-RESPONSE`` says of it.

        Raises:
            PaymentNotTaken, LimitReached, OutOfResources: as :meth:`taken`.
        """
        request, signed = payment.payload, await self._signed(payment)
        channel_id = signed.voucher.channel_id
        self._decide(channel_id)
        try:
            if self._open[channel_id].streams:
                raise _busy()
            account = await self._kept(signed.terms, channel_id)
            asked = int(request.amount) if isinstance(request, RefundRequest) and request.amount else None
            given = check_refund(account, self.offer, signed.voucher, signed.recover, asked)
            self._looked.pop(channel_id, None)
            transaction = await self.chain.send(partial(self._return, account, given), "payer")
            after = await self._change(channel_id, lambda now: now)
            return encoded(response(self.offer, after, 0, transaction))
        finally:
            self.decided(channel_id)

    def _return(self, account: PayeeAccount, amount: int) -> str:
        self._refunds.take(account, self.offer.least_deposit, self.clock())
        if account.voucher is not None and account.owed > account.redeemed:
            self.client.claim(self.key, account)
        transaction = self.client.give_back(self.key, account.terms, amount)
        self.refresh(account, begin_anew)
        return transaction

    def decided(self, channel_id: bytes, streams: int = 0) -> None:
        """A request over a payment channel is beyond its head; so many are now counted later."""
        found = self._open[channel_id]
        found.deciding = False
        found.streams += streams
        self._forget(channel_id)

    async def charge(self, purchase: Purchase, *, streamed: bool) -> int:
        """Write down what a client is told that its request was charged. Returns that."""
        others, micro = self._open[purchase.channel_id].streams, purchase.tokens * self.offer.price
        charged = 0

        def change(account: PayeeAccount) -> PayeeAccount:
            nonlocal charged
            if streamed:
                charged = charge_before(account, self.offer, others)
            else:
                account = _owing(account, micro)
                charged = charge_after(account, self.offer, others)
            return tell(account, charged)

        purchase.account = await self._change(purchase.channel_id, change)
        return charged

    async def count(self, purchase: Purchase) -> None:
        """Write down what a stream has used."""
        micro = purchase.tokens * self.offer.price
        try:
            await self._change(purchase.channel_id, lambda account: _owing(account, micro))
        except OutOfResources as error:
            # The answer is given, and nobody is left to be told: what it cost is lost to us.
            log.warning("%d tokens of a paid answer are not counted: %s", purchase.tokens, error.message)
        finally:
            self._open[purchase.channel_id].streams -= 1
            self._forget(purchase.channel_id)

    def refresh(
        self, account: PayeeAccount, after: Callable[[PayeeAccount], PayeeAccount] = lambda now: now
    ) -> PayeeAccount:
        """Note what the chain says of a payment channel; to be called where :attr:`chain` sends."""
        state = self.client.state(account.terms, account.channel_id)
        return self.book.change(account.channel_id, lambda now: after(note_escrow(now, state)))

    async def _signed(self, payment: Payment) -> _Signed:
        """The voucher of a request, once it is certain that its payer has signed it; on terms that are ours.

        To be asked first: who is not the payer must not keep the payer's own requests out.
        """
        terms, channel_id = self._channel(payment)
        signed = _Signed(terms, self._voucher(payment.payload.voucher, channel_id), lru_cache(1)(recover))
        await trio.to_thread.run_sync(check_signed, signed.voucher, terms, signed.recover)
        return signed

    def _channel(self, payment: Payment) -> tuple[PaymentTerms, bytes]:
        """The terms of the payment channel, which must be ours, and its name, which must be their hash."""
        terms = terms_of(payment)
        self.offer.check_terms(terms)
        channel_id = terms.channel_id(self.offer.domain)
        if payment.payload.voucher.channel_id.lower() != "0x" + channel_id.hex():
            message = "the name of the payment channel is not that of its terms"
            raise PaymentNotTaken(message, reason=WRONG_CHANNEL)
        return terms, channel_id

    def _decide(self, channel_id: bytes) -> None:
        found = self._open.setdefault(channel_id, _UnderWay())
        if found.deciding:
            raise _busy()
        found.deciding = True

    def _forget(self, channel_id: bytes) -> None:
        found = self._open[channel_id]
        if not found.deciding and not found.streams:
            del self._open[channel_id]

    async def _paid(self, payload: PaymentPayload, signed: _Signed) -> tuple[PayeeAccount, str]:
        voucher, transaction = signed.voucher, ""
        channel_id = voucher.channel_id
        pay = partial(
            pay_request, offer=self.offer, voucher=voucher, recover=signed.recover, now=self.clock()
        )
        if isinstance(payload, DepositPayment):
            transaction = await self._deposit(signed.terms, channel_id, payload, pay)
        else:
            await self._kept(signed.terms, channel_id)
        return await self._change(channel_id, pay), transaction

    async def _deposit(
        self,
        terms: PaymentTerms,
        channel_id: bytes,
        payment: DepositPayment,
        pay: Callable[[PayeeAccount], PayeeAccount],
    ) -> str:
        """Put a payer's tokens into escrow, once it is certain that its request would be paid by them."""
        amount = int(payment.deposit.amount)
        if amount < self.offer.least_deposit:
            raise PaymentNotTaken(
                f"this deposit is of {amount}; at least {self.offer.least_deposit} are taken",
                reason=SMALL_DEPOSIT,
                check="deposit more at once",
            )
        kept = account = await self._find(channel_id)
        who, by = self._asker(kept), payment.deposit.authorization.erc3009
        if account is None:
            state = await self.chain.ask(partial(self.client.state, terms, channel_id), who)
            account = self._begun(terms, channel_id, state)
        pay(msgspec.structs.replace(account, deposit=account.deposit + amount))

        def send() -> str:
            # Kept before anything is sent: where there is no room, nobody's tokens are taken for nothing.
            if kept is None:
                self.book.add(account)
            done = self.client.deposit(self.key, terms, amount, by)
            self.refresh(account)
            return done

        self._looked.pop(channel_id, None)
        try:
            # Beside those who wait for a transaction: whoever has no tokens takes none of their places.
            await self.chain.ask(partial(self.client.check_deposit, self.key, terms, amount, by), who)
            done = await self.chain.send(send, "payer")
            self.looked(channel_id, trio.current_time())
        except ChainError as error:  # it has certainly not happened
            await self._drop_empty(channel_id)
            raise PaymentNotTaken(
                f"the deposit is refused: {error.message}",
                reason=DEPOSIT_FAILED,
                check="see that the payer has so many tokens, and sign a new authorization",
            ) from error
        log.info("%s has paid %d into escrow", show_address(terms.payer), amount)
        return done

    def _begun(self, terms: PaymentTerms, channel_id: bytes, state: Escrowed) -> PayeeAccount:
        """A payment channel that is not kept here. The contract never forgets what it has paid out of it."""
        began = PayeeAccount(
            terms=terms,
            domain=self.offer.domain,
            channel_id=channel_id,
            deposit=0,
            window=0,
            owed_micro=state.redeemed * MICRO,
            told=state.redeemed,
        )
        return note_escrow(began, state)

    def _voucher(self, signed: SignedVoucher, channel_id: bytes) -> Voucher:
        amount = signed.amount
        encoded_amount = amount.to_bytes(max(1, (amount.bit_length() + 7) // 8), "big")
        domain = self.offer.domain
        return Voucher(domain.chain_id, domain.contract, channel_id, encoded_amount, signed.signature_bytes)

    async def _kept(self, terms: PaymentTerms, channel_id: bytes) -> PayeeAccount:
        """An account, with what the chain said of it a minute ago or later.

        One that is not kept begins, where the chain has something in escrow: its deposit was sent by a
        gateway that did not live to note it.
        """
        account, now = await self._find(channel_id), trio.current_time()
        if account is not None and now - self._looked.get(channel_id, -inf) <= LOOK_S:
            return account
        asked = partial(self.client.state, terms, channel_id)
        state = await self.chain.ask(asked, self._asker(account))
        if account is not None:
            account = await self._change(channel_id, lambda kept: note_escrow(kept, state))
        elif state.deposit > state.redeemed:
            account = self._begun(terms, channel_id, state)
            await on_disk(partial(self.book.add, account))
        else:
            raise PaymentNotTaken(
                "this gateway knows nothing of this payment channel",
                reason=UNKNOWN_CHANNEL,
                check="pay a deposit with the first request",
            )
        self.looked(channel_id, now)
        return account

    async def observe(self, channel_id: bytes) -> PayeeAccount:
        """An account as the chain has it now.

        Raises:
            LimitReached, ChainError, OutOfResources: as :meth:`taken`.
        """
        before = await on_disk(partial(self.book.read, channel_id))
        state = await self.chain.ask(partial(self.client.state, before.terms, channel_id), "gateway")

        def note(now: PayeeAccount) -> PayeeAccount:
            # Else somebody has noted meanwhile what is newer.
            return note_escrow(now, state) if note_escrow(now, before) == now else now

        return await self._change(channel_id, note)

    async def forget_empty(self, channel_id: bytes) -> None:
        """Keep a payment channel no more of which nothing is left, unless a request is under way over it."""
        if channel_id in self._open:
            return
        self._decide(channel_id)
        try:
            await self._drop_empty(channel_id)
        finally:
            self.decided(channel_id)

    async def _drop_empty(self, channel_id: bytes) -> None:
        account = await self._find(channel_id)
        if account is not None and account.deposit <= account.redeemed:
            await on_disk(partial(self.book.remove, channel_id))

    def looked(self, channel_id: bytes, at: float) -> None:
        """What is kept of a payment channel is what the chain said ``at`` that time, of trio's clock."""
        self._looked[channel_id] = at
        self._looked.move_to_end(channel_id)
        if len(self._looked) > MAX_LOOKED:
            self._looked.popitem(last=False)

    def _asker(self, kept: PayeeAccount | None) -> ChainCaller:
        return "payer" if kept is not None and kept.deposit else "stranger"

    async def _find(self, channel_id: bytes) -> PayeeAccount | None:
        return await on_disk(partial(self._look, channel_id))

    def _look(self, channel_id: bytes) -> PayeeAccount | None:
        try:
            return self.book.read(channel_id)
        except UsageError:
            return None

    async def _change(
        self, channel_id: bytes, change: Callable[[PayeeAccount], PayeeAccount]
    ) -> PayeeAccount:
        return await on_disk(partial(self.book.change, channel_id, change))


def _owing(account: PayeeAccount, micro: int) -> PayeeAccount:
    return msgspec.structs.replace(account, owed_micro=account.owed_micro + micro)


def _busy() -> PaymentNotTaken:
    return PaymentNotTaken(
        "another request over this payment channel is not answered yet",
        reason=BUSY,
        check="wait for its answer, or open another payment channel with another salt",
    )
