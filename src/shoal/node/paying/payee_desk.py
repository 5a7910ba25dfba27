"""Takes vouchers for the work of a node: serves on credit up to a window, waits, and goes on when it is paid.

Steps are reserved and charged in memory, by numbers. What is signed is checked and written in a thread: the
newest voucher is on the disk before it counts.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import msgspec
import trio

from shoal.errors import ChannelClosed, PaymentRequired, RemoteProtocolError, ShoalError, VoucherRefused
from shoal.keyed_locks import KeyedLocks
from shoal.ledger.vouchers.book import MAX_ACCOUNTS, PaymentBook
from shoal.ledger.vouchers.keys import recover
from shoal.ledger.vouchers.offer import check_offer
from shoal.ledger.vouchers.payee import (
    MICRO,
    PayeeAccount,
    charge,
    check_credit,
    note_escrow,
    take_voucher,
)
from shoal.ledger.vouchers.typed_data import ChainAddress, SigningDomain
from shoal.ledger.vouchers.voucher import PaymentTerms, Voucher
from shoal.net.channel import Channel
from shoal.node.handlers import Handlers
from shoal.node.paying.escrow_watch import EscrowReader, EscrowWatch
from shoal.node.paying.redeemer import Redeemer
from shoal.option_values import show_coins
from shoal.swarm.announcement import AskedPrice, window_of
from shoal.types import PeerId, Span
from shoal.wire.messages import Open, shorten
from shoal.wire.paying import Paid, PaymentDue

ASK_AT = 4
"""Of a window, a fourth: when so much is owed, the client is told."""
LEAST_PART = 16
"""Of a window: a voucher that adds less, and does not pay all, is dust."""
LOOK_S = 60.0
"""How old what the chain has said of a payment channel may be when a session begins."""
LOOK_AGAIN_S = 2.0
"""The same where more is wanted than was in escrow then."""
MAX_CHANNELS = 1024
"""Payment channels in memory; others are read again."""
CROWDED = MAX_ACCOUNTS // 2
"""Accounts on the disk: with so many, the chain is asked of all of them, and those with nothing left go."""
LOOKING = 64
"""New payment channels that are looked at, or wait for it; the client of one more is to come again."""
WRITE_WITHIN_S = 2.0
ADMIT_WITHIN_S = 2.0
"""How long a new session waits until what is owed from before is paid."""

log = logging.getLogger(__name__)

_voucher = msgspec.msgpack.Decoder(Voucher)


class _Account:
    """A payment channel while sessions are paid over it."""

    def __init__(self, kept: PayeeAccount, client: Channel, looked_at: float) -> None:
        self.kept = kept
        self.client = client
        self.looked_at = looked_at
        self.lock = threading.Lock()
        self.reserved_micro = 0
        self.told_micro = kept.owed_micro
        """What the client was last told that it owes."""
        self.sessions = 0
        self.news = trio.Event()
        self.pending: Voucher | None = None
        """The newest that has come and was not looked at yet."""
        self.taking = False
        self.waiting = False
        """Whether a session waits for news."""

    def wake(self) -> None:
        """More may be paid for than before."""
        self.waiting = False
        self.news.set()
        self.news = trio.Event()


class PaidSession:
    """A :class:`~shoal.node.paying.payment.SessionPayment`."""

    def __init__(self, desk: PayeeDesk, account: _Account, micro: int) -> None:
        self._desk = desk
        self.account = account
        self._micro = micro
        """Of a token through the session's blocks, at the price that was agreed when it was opened."""

    @property
    def news(self) -> trio.Event:
        return self.account.news

    def covers_next(self) -> bool:
        # Each session of the channel may be about to run one.
        return self.covers(self.account.sessions)

    def reserve(self, tokens: int) -> bool:
        with self.account.lock:
            if not self.covers(tokens):
                return False
            self.account.reserved_micro += tokens * self._micro
            return True

    def settle(self, tokens: int, *, done: bool) -> None:
        self._count(tokens, reserved=tokens, done=done)

    def charge(self, tokens: int) -> None:
        self._count(tokens, reserved=0, done=True)

    def _count(self, tokens: int, *, reserved: int, done: bool) -> None:
        account = self.account
        with account.lock:
            account.reserved_micro = max(0, account.reserved_micro - reserved * self._micro)
            if done:
                account.kept = charge(account.kept, tokens * self._micro)
            kept = account.kept
            ask = kept.owed_micro - account.told_micro >= kept.window * MICRO // ASK_AT
            if ask:
                account.told_micro = kept.owed_micro
        if ask:
            self._desk.soon(partial(self._desk.tell, account))
        if account.waiting:
            self._desk.soon(account.wake)

    def check(self, tokens: int) -> None:
        account, micro = self.account, tokens * self._micro
        check_credit(account.kept, account.reserved_micro + micro, self._desk.now())
        if micro > account.kept.window * MICRO:
            raise PaymentRequired(
                f"a step of {tokens} tokens costs more than the {account.kept.window} that this node gives "
                "credit for",
                reason="unpaid",
                check="send the prompt in smaller pieces: prefill-chunk",
            )

    def wait_told(self) -> None:
        self.account.waiting = True
        self._desk.tell(self.account, waiting=True)

    def covers(self, tokens: int) -> bool:
        """Whether ``tokens`` more would be paid for."""
        try:
            self.check(tokens)
        except PaymentRequired:
            return False
        return True


class PayeeDesk:
    """See the module. ``run`` must be running.

    Args:
        peer: the node: who pays another one of the same wallet does not pay it.
        price: for a million tokens of one block, in the smallest unit.
        address: to whom clients pay.
        wall: seconds since the epoch, to compare with when a payment channel closes.
        redeemer: what redeems by itself; ``None``: whoever owns the wallet does.
    """

    def __init__(
        self,
        peer: PeerId,
        book: PaymentBook[PayeeAccount],
        escrow: EscrowReader,
        domain: SigningDomain,
        address: ChainAddress,
        price: int,
        wall: Callable[[], float],
        redeemer: Redeemer | None = None,
    ) -> None:
        self._peer = peer
        self._redeemer = redeemer
        self._book = book
        self._looked = EscrowWatch(book, escrow, domain).look
        self._domain = domain
        self._address = address
        self.price = price
        """What new sessions pay; those that are open pay what they were opened at."""
        self.now = wall
        self._accounts: OrderedDict[bytes, _Account] = OrderedDict()
        self._sessions: dict[bytes, PaidSession] = {}
        self._nursery: trio.Nursery | None = None
        self._loop: trio.lowlevel.TrioToken | None = None
        self._opening = KeyedLocks[bytes]()

    def asked(self, blocks: int) -> AskedPrice:
        """What the node announces for a span of ``blocks``."""
        domain, window = self._domain, window_of(self.price, blocks)
        return AskedPrice(self.price, window, self._address, domain.chain_id, domain.contract)

    def register(self, handlers: Handlers) -> None:
        """Have vouchers given here."""
        handlers.register(Paid, self._paid)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what sessions have left owing, and take vouchers, until cancelled."""
        self._loop = trio.lowlevel.current_trio_token()
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                if self._redeemer is not None:
                    self._nursery.start_soon(self._redeemer.run, self._is_serving)
                while True:
                    await trio.sleep(LOOK_S)
                    await self._look()
        finally:
            self._nursery = None
            with trio.move_on_after(WRITE_WITHIN_S, shield=True):
                for account in self._accounts.values():
                    await self._write(account)

    def _is_serving(self, channel_id: bytes) -> bool:
        """Whether a session is open that is paid for over a payment channel."""
        account = self._accounts.get(channel_id)
        return account is not None and account.sessions > 0

    async def _look(self) -> None:
        """See whether payers are closing their payment channels, of open sessions and of all in which
        something is to be redeemed: no more is served then, and what is not redeemed in time is lost."""
        for account in [one for one in self._accounts.values() if one.sessions]:
            try:
                self._adopt(account, await self._looked(account.kept.channel_id, account.kept.terms))
            except ShoalError as error:
                _warn_unknown(account.kept, error)
            self._warn_closing(account.kept)
        for kept in await trio.to_thread.run_sync(self._due_to_look, abandon_on_cancel=True):
            account = self._accounts.get(kept.channel_id)
            if account is not None and account.sessions:
                continue
            try:
                seen = await self._looked(kept.channel_id, kept.terms)
                if seen.deposit <= seen.redeemed:
                    await self._drop(seen)
                    continue
            except ShoalError as error:
                _warn_unknown(kept, error)
                break  # the others would wait as long for nothing; a minute later they are asked for again
            if account is not None:
                self._adopt(account, seen)
            self._warn_closing(seen)

    async def _drop(self, kept: PayeeAccount) -> None:
        """Forget a payment channel that has nothing left: what the chain says is all that counts by now."""
        account = self._accounts.get(kept.channel_id)
        if account is not None and (account.sessions or account.taking):
            return
        self._accounts.pop(kept.channel_id, None)
        await trio.to_thread.run_sync(self._book.remove, kept.channel_id)

    def _due_to_look(self) -> list[PayeeAccount]:
        """The accounts on the disk for which the chain would still pay something out, and those that have
        nothing left; all where so many are kept that some of them must go."""
        found: list[PayeeAccount] = []
        channel_ids = self._book.channel_ids()
        for channel_id in channel_ids:
            try:
                account = self._book.read(channel_id)
            except ShoalError as error:
                log.warning("%s: it is passed over", error.message)
                continue
            due = account.unredeemed or account.deposit <= account.redeemed or len(channel_ids) >= CROWDED
            if due and account.domain == self._domain:
                found.append(account)
        return found

    async def admit(self, channel: Channel, message: Open) -> PaidSession:
        """How a session will be paid for. See :class:`~shoal.node.paying.payment.PaymentDesk`."""
        offer, span = message.payment, Span(message.start, message.end)
        asked = self.asked(len(span))
        if offer is None or offer.price < asked.amount:
            offered = f"{show_coins(offer.price)} were offered" if offer else "nothing was offered"
            raise PaymentRequired(
                f"this node asks {show_coins(asked.amount)} for a million tokens of a block, and {offered}",
                reason="price raised" if offer else "unpaid",
                check="let more be paid with max-price, from a wallet and with pay-budget",
            )
        terms = check_offer(offer, channel.peer, self._peer, self._domain, self._address, recover)
        account = await self._opened(terms, channel, asked.window)
        session = PaidSession(self, account, len(span) * offer.price)
        await self._wait_paid(session)
        account.sessions += 1
        self._sessions[message.session] = session
        return session

    async def _wait_paid(self, session: PaidSession) -> None:
        """Give a client that owes much a moment to pay. Raises PaymentRequired: it has not."""
        with trio.move_on_after(ADMIT_WITHIN_S):
            while not session.covers(1):
                news = session.news
                session.wait_told()
                await news.wait()
        session.check(1)

    def ended(self, session: bytes) -> None:
        """A session is over: what is owed for it is written, and its client is told."""
        paid = self._sessions.pop(session, None)
        if paid is None:
            return
        account = paid.account
        account.sessions -= 1
        if not account.sessions:
            account.reserved_micro = 0  # of steps that ended with their session
        if account.kept.owed > account.kept.paid:
            self.tell(account)
        self._start(partial(self._write, account))

    def soon(self, run: Callable[[], None]) -> None:
        """Run something on the event loop, from any thread."""
        if self._loop is not None:
            with suppress(trio.RunFinishedError):
                self._loop.run_sync_soon(run)

    def tell(self, account: _Account, *, waiting: bool = False, refused: str = "") -> None:
        """Tell the client what is owed, and whether sessions wait for it."""
        kept = account.kept
        owed = kept.owed_micro.to_bytes((kept.owed_micro.bit_length() + 7) // 8 or 1, "big")
        newest = msgspec.msgpack.encode(kept.voucher) if kept.voucher else b""
        due = PaymentDue(kept.channel_id, owed, newest, waiting, shorten(refused))
        with suppress(ChannelClosed):  # the client is gone, or does not read
            account.client.reply(due)

    async def _opened(self, terms: PaymentTerms, channel: Channel, window: int) -> _Account:
        channel_id = terms.channel_id(self._domain)
        account = self._fresh(channel_id)
        if account is None:
            if channel_id not in self._accounts and len(self._opening) >= LOOKING:
                message = f"{LOOKING} other payment channels are looked at first"
                raise PaymentRequired(message, reason="unpaid", check="ask again in some seconds")
            async with self._opening.held(channel_id):
                # Who waited here finds what who was first has seen.
                account = self._fresh(channel_id) or await self._taken_up(terms, channel, channel_id, window)
        self._accounts[channel_id] = account
        self._accounts.move_to_end(channel_id)
        account.client = channel
        with account.lock:
            least = max(1, window // LEAST_PART)
            account.kept = msgspec.structs.replace(account.kept, window=window, least=least)
        self._forget()
        return account

    def _fresh(self, channel_id: bytes) -> _Account | None:
        """The account of a payment channel that was looked at lately."""
        account = self._accounts.get(channel_id)
        is_fresh = account is not None and trio.current_time() - account.looked_at <= LOOK_S
        return account if is_fresh else None

    async def _taken_up(
        self, terms: PaymentTerms, channel: Channel, channel_id: bytes, window: int
    ) -> _Account:
        known = channel_id in self._accounts
        kept = await self._looked(channel_id, terms, window, known=known)
        account = self._accounts.get(channel_id)
        if account is None:
            return _Account(kept, channel, trio.current_time())
        self._adopt(account, kept)
        return account

    def _forget(self) -> None:
        """Keep no more accounts in memory than there is room for: those without a session go first."""
        idle = [key for key, one in self._accounts.items() if not one.sessions and not one.taking]
        for key in idle[: max(0, len(self._accounts) - MAX_CHANNELS)]:
            del self._accounts[key]

    def _adopt(self, account: _Account, kept: PayeeAccount) -> None:
        """Take over what the disk and the chain say; what was served since is in memory alone."""
        with account.lock:
            voucher = kept.voucher if kept.paid > account.kept.paid else account.kept.voucher
            account.kept = msgspec.structs.replace(note_escrow(account.kept, kept), voucher=voucher)
        account.looked_at = trio.current_time()
        account.wake()

    async def _paid(self, channel: Channel, message: Paid, payload: bytes) -> None:
        try:
            voucher = _voucher.decode(message.voucher)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RemoteProtocolError(f"no voucher: {error}") from error
        account = self._accounts.get(voucher.channel_id)
        if account is None or channel.peer != account.client.peer:
            return  # of a session long ago, or who has none here; what was taken is on the disk
        if account.pending is None or voucher.amount > account.pending.amount:
            account.pending = voucher
        if not account.taking:
            account.taking = True
            self._start(partial(self._take, account))

    async def _take(self, account: _Account) -> None:
        try:
            while account.pending is not None:
                voucher, account.pending = account.pending, None
                try:
                    await self._take_one(account, voucher)
                except VoucherRefused as error:
                    log.info("a voucher was refused: %s", error.message)
                    self.tell(account, refused=error.message)
                except ShoalError as error:
                    log.warning("a voucher could not be taken: %s", error.message)
                    self.tell(account, refused=error.message)
        finally:
            account.taking = False

    async def _take_one(self, account: _Account, voucher: Voucher) -> None:
        late = trio.current_time() - account.looked_at > LOOK_AGAIN_S
        if voucher.amount > account.kept.deposit and late:
            self._adopt(account, await self._looked(account.kept.channel_id, account.kept.terms))

        def take(one: PayeeAccount) -> PayeeAccount:
            now = account.kept
            served = max(one.owed_micro, now.owed_micro)
            known = msgspec.structs.replace(
                one, owed_micro=served, deposit=now.deposit, window=now.window, least=now.least
            )
            return take_voucher(known, voucher, recover)

        after = await trio.to_thread.run_sync(self._book.change, account.kept.channel_id, take)
        with account.lock:
            account.kept = msgspec.structs.replace(account.kept, voucher=after.voucher)
        account.wake()

    async def _write(self, account: _Account) -> None:
        """Put what is owed on the disk."""

        def owed(one: PayeeAccount) -> PayeeAccount:
            micro = max(one.owed_micro, account.kept.owed_micro)
            return msgspec.structs.replace(one, owed_micro=micro, window=account.kept.window)

        try:
            await trio.to_thread.run_sync(self._book.change, account.kept.channel_id, owed)
        except ShoalError as error:
            log.warning("what is owed was not written: %s", error.message)

    def _warn_closing(self, account: PayeeAccount) -> None:
        if account.closes_at is not None and self._redeemer is None:
            name = account.channel_id.hex()
            log.warning("%s is being closed: shoal wallet withdraw %s takes what is paid", name, name)

    def _start(self, task: Callable[[], Awaitable[None]]) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(task)


def _warn_unknown(account: PayeeAccount, error: ShoalError) -> None:
    name = account.channel_id.hex()
    log.warning("it is not known what is in the payment channel %s: %s", name, error.message)
