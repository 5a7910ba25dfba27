"""What both sides of a payment channel hold to, whatever the other says and however long the chain takes."""

from __future__ import annotations

import threading
from functools import partial
from types import SimpleNamespace

import msgspec
import pytest
import trio

from shoal.client.paying import voucher_payer
from shoal.client.paying.payments import Payments
from shoal.client.paying.terms import HopBill
from shoal.client.paying.voucher_payer import VoucherPayer
from shoal.errors import PaymentRequired, PaymentStopped, RemoteProtocolError, VoucherRefused
from shoal.ledger.settling import PaymentBooks
from shoal.ledger.vouchers.keys import ChainKey
from shoal.ledger.vouchers.offer import offer_payment
from shoal.ledger.vouchers.payee import MICRO, PayeeAccount
from shoal.ledger.vouchers.voucher import sign_voucher
from shoal.node.paying import escrow_watch, payee_desk
from shoal.node.paying.payee_desk import PayeeDesk
from shoal.swarm.announcement import AskedPrice
from shoal.testing.escrow import PretendedChain
from shoal.wire.messages import Open
from shoal.wire.paying import Paid, PaymentDue

PRICE = 10**12
NODE = "node"
WINDOW_TOKENS = 48


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    small = lambda amount, blocks: amount * blocks * WINDOW_TOKENS // MICRO  # noqa: E731
    monkeypatch.setattr(payee_desk, "window_of", small)


class Heard:
    """The client's end of a channel, as far as the payee speaks to it."""

    def __init__(self, peer="client"):
        self.peer = peer
        self.said = []

    def reply(self, message):
        self.said.append(message)


async def test_stale_replayed_foreign_and_too_large_vouchers_are_refused_by_name(tmp_path):
    chain, key, payee = PretendedChain(), ChainKey.generate(), ChainKey.generate().address
    books, there = PaymentBooks.below(tmp_path / "payer"), PaymentBooks.below(tmp_path / "payee")
    account = chain.fund(books, key, payee, NODE, 10**9)
    desk = PayeeDesk(NODE, there.paid, chain, chain.domain, payee, PRICE, lambda: 0.0)
    channel = Heard()

    async def pay(amount, signer=key, channel_id=account.channel_id):
        said = len(channel.said)
        voucher = sign_voucher(signer, chain.domain, channel_id, amount)
        await desk._paid(channel, Paid(msgspec.msgpack.encode(voucher)), b"")
        with trio.move_on_after(2):
            while desk._accounts[account.channel_id].taking:  # noqa: ASYNC110
                await trio.sleep(0.005)
        return [one.refused for one in channel.said[said:]]

    async with trio.open_nursery() as nursery:
        await nursery.start(desk.run)
        opened = Open(b"s" * 16, "sha256:m", "fp32", 0, 6, 64, 0, None, None, "n1/fp32/auto/modules")

        def offered(client="client", signer=key, **changes):
            terms = msgspec.structs.replace(account.terms, **changes)
            offer = offer_payment(signer, chain.domain, terms, client, PRICE)
            return msgspec.structs.replace(opened, payment=offer)

        for change in ({"payee": key.address}, {"payee_signer": key.address}, {"token": b"t" * 20}):
            with pytest.raises(VoucherRefused, match="pays somebody else"):
                await desk.admit(channel, offered(**change))
        with pytest.raises(VoucherRefused, match="closes too soon"):
            await desk.admit(channel, offered(delay_s=86399))
        # Who only knows the terms, as all who read the chain do, has nothing done at the payer's cost.
        for thief in (offered(signer=ChainKey.generate()), offered(client="another")):
            with pytest.raises(VoucherRefused, match="has not let this client"):
                await desk.admit(channel, thief)
        for change in ({"chain_id": 1}, {"contract": b"x" * 20}):
            foreign = msgspec.structs.replace(offered().payment, **change)
            with pytest.raises(VoucherRefused, match="this node is paid"):
                await desk.admit(channel, msgspec.structs.replace(opened, payment=foreign))
        await desk.admit(channel, offered())
        # Who is not its client puts nothing in the place of what the client sends.
        await desk._paid(
            Heard("another"),
            Paid(msgspec.msgpack.encode(sign_voucher(key, chain.domain, account.channel_id, 500))),
            b"",
        )
        held = desk._accounts[account.channel_id]
        assert held.pending is None and not held.taking
        assert await pay(1000) == []
        assert await pay(1000) == ["a voucher for 1000 is here already"]
        (stale,) = await pay(999)
        assert "a newer one for 1000" in stale
        (large,) = await pay(10**9 + 1)
        assert "1000000000 are in escrow" in large
        (forged,) = await pay(2000, ChainKey.generate())
        assert "has not signed" in forged
        assert await pay(3000, channel_id=b"x" * 32) == []  # of no payment channel that is known
        assert there.paid.read(account.channel_id).paid == 1000
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_payee_hears_of_a_close_also_where_no_session_is_open(tmp_path, caplog, restarted):
    chain, key, payee = PretendedChain(), ChainKey.generate(), ChainKey.generate().address
    books, there = PaymentBooks.below(tmp_path / "payer"), PaymentBooks.below(tmp_path / "payee")
    kept = chain.fund(books, key, payee, NODE, 10**9)
    idle = chain.fund(books, key, payee, NODE, 10**9)
    for account, paid in ((kept, 1000), (idle, 0)):
        voucher = sign_voucher(key, chain.domain, account.channel_id, paid) if paid else None
        there.paid.add(
            PayeeAccount(
                terms=account.terms,
                domain=chain.domain,
                channel_id=account.channel_id,
                deposit=10**9,
                window=10**6,
                voucher=voucher,
            )
        )
    desk = PayeeDesk(NODE, there.paid, chain, chain.domain, payee, PRICE, lambda: 0.0)
    if not restarted:
        async with trio.open_nursery() as nursery:
            await nursery.start(desk.run)
            for account in (kept, idle):
                offer = offer_payment(key, chain.domain, account.terms, "client", PRICE)
                opened = Open(b"s" * 16, "sha256:m", "fp32", 0, 6, 64, 0, None, None, "n1", payment=offer)
                await desk.admit(Heard(), opened)
                desk.ended(opened.session)
            nursery.cancel_scope.cancel()
    for account in (kept, idle):
        chain.channels[account.channel_id].closes_at = 86400.0
    await desk._look()
    said = [record.getMessage() for record in caplog.records if "is being closed" in record.getMessage()]
    assert len(said) == 1 and kept.channel_id.hex() in said[0]
    assert there.paid.read(kept.channel_id).closes_at == 86400.0


async def test_a_payment_channel_is_taken_up_with_a_window_in_it_and_forgotten_when_it_is_empty(tmp_path):
    chain, key, payee = PretendedChain(), ChainKey.generate(), ChainKey.generate().address
    books, there = PaymentBooks.below(tmp_path / "payer"), PaymentBooks.below(tmp_path / "payee")
    desk = PayeeDesk(NODE, there.paid, chain, chain.domain, payee, PRICE, lambda: 0.0)
    window = desk.asked(6).window

    def opened(account):
        offer = offer_payment(key, chain.domain, account.terms, "client", PRICE)
        return Open(b"s" * 16, "sha256:m", "fp32", 0, 6, 64, 0, None, None, "n1", payment=offer)

    with pytest.raises(PaymentRequired, match="takes up none with less"):
        await desk.admit(Heard(), opened(chain.fund(books, key, payee, NODE, window - 1)))
    assert there.paid.channel_ids() == []
    account = chain.fund(books, key, payee, NODE, window)
    escrow = chain.channels[account.channel_id]
    await desk.admit(Heard(), opened(account))
    escrow.redeemed = window
    desk._accounts[account.channel_id].looked_at = -1e9
    await desk._look()
    assert there.paid.channel_ids() == [account.channel_id]  # a session is open
    desk.ended(b"s" * 16)
    await desk._look()
    assert there.paid.channel_ids() == [] == list(desk._accounts)
    # Filled again, it begins where the chain is: an old voucher pays for nothing a second time.
    escrow.deposit = 3 * window
    with pytest.raises(PaymentRequired, match="are owed and 0 paid"):
        await desk.admit(Heard(), opened(account))
    assert there.paid.read(account.channel_id).owed == window


async def test_where_many_are_kept_the_chain_is_asked_which_are_empty(tmp_path, monkeypatch):
    monkeypatch.setattr(payee_desk, "CROWDED", 2)
    chain, key, payee = PretendedChain(), ChainKey.generate(), ChainKey.generate().address
    books, there = PaymentBooks.below(tmp_path / "payer"), PaymentBooks.below(tmp_path / "payee")
    desk = PayeeDesk(NODE, there.paid, chain, chain.domain, payee, PRICE, lambda: 0.0)
    for _ in range(2):
        account = chain.fund(books, key, payee, NODE, 10**9)
        await desk._looked(account.channel_id, account.terms)
    chain.channels[account.channel_id].redeemed = 10**9  # as after its payer has taken back what was left
    await desk._look()
    assert len(there.paid.channel_ids()) == 1
    await desk._look()
    assert len(there.paid.channel_ids()) == 1


async def test_a_payment_channel_that_its_payer_closes_is_offered_to_nobody(tmp_path):
    chain, key, payee = PretendedChain(), ChainKey.generate(), ChainKey.generate().address
    books = PaymentBooks.below(tmp_path)
    price = AskedPrice(PRICE, 10**6, payee, chain.domain.chain_id, chain.domain.contract)
    closing, other = chain.fund(books, key, payee, NODE, 10**9), chain.fund(books, key, payee, NODE, 10**8)
    payer = VoucherPayer("client", key, books, partial(chain.fund, books, key), chain.domain, 0)

    async def offered():
        await payer.offer(NODE, price)
        return payer._to[NODE, payee].account.channel_id

    assert await offered() == closing.channel_id
    closes = partial(msgspec.structs.replace, closes_at=86400.0)
    payer._to[NODE, payee].account = books.paying.change(closing.channel_id, closes)
    assert await offered() == other.channel_id
    books.paying.change(other.channel_id, closes)
    fresh = VoucherPayer("client", key, books, partial(chain.fund, books, key), chain.domain, 0)
    with pytest.raises(PaymentStopped):
        await fresh.offer("node", price)


class Hanging(PretendedChain):
    """A chain whose node does not answer for some payment channels, until ``gate`` is set."""

    def __init__(self):
        super().__init__()
        self.gate, self.hangs, self.asked = threading.Event(), set(), []

    def escrow_state(self, channel_id):
        self.asked.append(channel_id)
        if channel_id in self.hangs:
            self.gate.wait(20)
        return super().escrow_state(channel_id)

    def fund(self, books, key, payee, node, amount):
        if payee in self.hangs:
            self.asked.append(payee)
            self.gate.wait(20)
        return super().fund(books, key, payee, node, amount)


def opening(chain, key, account, peer="client"):
    offer = offer_payment(key, chain.domain, account.terms, peer, PRICE)
    return Open(b"s" * 16, "sha256:m", "fp32", 0, 6, 64, 0, None, None, "n1", payment=offer)


async def asked_of(chain, what, times=1):
    with trio.fail_after(10):
        while chain.asked.count(what) < times:  # noqa: ASYNC110
            await trio.sleep(0.005)


async def test_a_session_waits_for_what_the_chain_says_of_its_own_payment_channel_alone(
    tmp_path, monkeypatch
):
    chain, key, payee = Hanging(), ChainKey.generate(), ChainKey.generate().address
    books, there = PaymentBooks.below(tmp_path / "payer"), PaymentBooks.below(tmp_path / "payee")
    desk = PayeeDesk(NODE, there.paid, chain, chain.domain, payee, PRICE, lambda: 0.0)
    known, other, slow = (chain.fund(books, key, payee, NODE, 10**9) for _ in range(3))
    chain.hangs = {slow.channel_id}
    await desk.admit(Heard(), opening(chain, key, known))
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(desk.admit, Heard(), opening(chain, key, slow))
        await asked_of(chain, slow.channel_id)
        with trio.fail_after(5):
            for account in (known, other):
                await desk.admit(Heard(), opening(chain, key, account))
            monkeypatch.setattr(payee_desk, "LOOKING", 1)
            with pytest.raises(PaymentRequired, match="looked at first"):
                await desk.admit(Heard(), opening(chain, key, chain.fund(books, key, payee, NODE, 10**9)))
            await desk.admit(Heard(), opening(chain, key, known))
        chain.gate.set()
    # The second one over it took what the first had seen.
    assert [chain.asked.count(one.channel_id) for one in (known, other, slow)] == [1, 1, 1]
    assert len(desk._opening) == 0


async def test_a_payment_channel_with_too_little_is_not_asked_for_again_at_once(tmp_path, monkeypatch):
    chain, key, payee = Hanging(), ChainKey.generate(), ChainKey.generate().address
    books, there = PaymentBooks.below(tmp_path / "payer"), PaymentBooks.below(tmp_path / "payee")
    desk = PayeeDesk(NODE, there.paid, chain, chain.domain, payee, PRICE, lambda: 0.0)
    account = chain.fund(books, key, payee, NODE, 1)
    for _ in range(3):
        with pytest.raises(PaymentRequired, match="takes up none with less"):
            await desk.admit(Heard(), opening(chain, key, account))
    assert len(chain.asked) == 1
    monkeypatch.setattr(escrow_watch, "POOR_S", 0.0)
    desk = PayeeDesk(NODE, there.paid, chain, chain.domain, payee, PRICE, lambda: 0.0)
    for _ in range(2):
        with pytest.raises(PaymentRequired):
            await desk.admit(Heard(), opening(chain, key, account))
    assert len(chain.asked) == 3


async def test_who_is_paid_already_is_offered_to_while_a_payment_channel_to_another_is_opened(tmp_path):
    chain, key = Hanging(), ChainKey.generate()
    paid, new = ChainKey.generate().address, ChainKey.generate().address
    books = PaymentBooks.below(tmp_path)
    payer = VoucherPayer("client", key, books, partial(chain.fund, books, key), chain.domain, 10**9)
    prices = [
        AskedPrice(PRICE, 10**6, one, chain.domain.chain_id, chain.domain.contract) for one in (paid, new)
    ]
    await payer.offer("node", prices[0])
    chain.hangs = {new}
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(payer.offer, "another", prices[1])
        await asked_of(chain, new)
        with trio.fail_after(5):
            await payer.offer("node", prices[0])
        chain.gate.set()
    assert len(books.paying.channel_ids()) == 2


class Asking:
    """A client's end of a channel to a hop that asks for money."""

    def __init__(self, peer):
        self.peer, self.sent = peer, []

    async def send(self, message):
        self.sent.append(message)


async def test_who_was_offered_nothing_asks_for_nothing_and_who_asks_too_much_stops_itself(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(voucher_payer, "RESULTS_WITHIN_S", 0.0)
    chain, key, payee = PretendedChain(), ChainKey.generate(), ChainKey.generate().address
    books = PaymentBooks.below(tmp_path)
    fund = partial(chain.fund, books, key)
    payer = VoucherPayer("client", key, books, fund, chain.domain, 10**9)
    price = AskedPrice(PRICE, 10**6, payee, chain.domain.chain_id, chain.domain.contract)
    for peer in ("liar", "honest"):
        await payer.offer(peer, price)
    to_liar, to_honest = (payer._to[peer, payee].account.channel_id for peer in ("liar", "honest"))

    def due(channel_id, micro, waiting):
        return PaymentDue(channel_id, micro.to_bytes(16, "big"), b"", waiting, "")

    liar, honest = Asking("liar"), Asking("honest")
    with pytest.raises(RemoteProtocolError, match="was not offered"):
        payer.note_due(liar, due(to_honest, 1, True))
    assert payer.note_due(honest, due(to_honest, 0, True))
    assert payer.note_due(liar, due(to_liar, 10**9 * MICRO, True))
    stopped = await payer.pay_due(to_liar, list)
    assert {channel.peer: why.reason for channel, why in stopped.items()} == {"liar": "overcharged"}
    again = Asking("liar")
    assert payer.note_due(liar, due(to_liar, 10**9 * MICRO, True))
    assert not payer.note_due(again, due(to_liar, 0, True))  # what one channel says does not hide the other
    assert list(await payer.pay_due(to_liar, list)) == [liar]


async def test_one_voucher_pays_one_node_and_not_the_others_of_its_wallet(tmp_path):
    chain, key, payee = PretendedChain(), ChainKey.generate(), ChainKey.generate().address
    books = PaymentBooks.below(tmp_path / "payer")
    payer = VoucherPayer("client", key, books, partial(chain.fund, books, key), chain.domain, 10**9)
    price = AskedPrice(PRICE, 10**6, payee, chain.domain.chain_id, chain.domain.contract)
    desks = {
        peer: PayeeDesk(
            peer, PaymentBooks.below(tmp_path / peer).paid, chain, chain.domain, payee, PRICE, lambda: 0.0
        )
        for peer in ("first", "second")
    }
    offers = {peer: await payer.offer(peer, price) for peer in desks}
    opened = Open(b"s" * 16, "sha256:m", "fp32", 0, 6, 64, 0, None, None, "n1")
    for peer, desk in desks.items():
        await desk.admit(Heard(), msgspec.structs.replace(opened, payment=offers[peer]))
        (other,) = offers.keys() - {peer}
        with pytest.raises(VoucherRefused, match="not of this node"):
            await desk.admit(Heard(), msgspec.structs.replace(opened, payment=offers[other]))
    assert [len(desk._book.channel_ids()) for desk in desks.values()] == [1, 1]
    # Each is paid for what it alone has given.
    came = SimpleNamespace(asked=100, came=100)
    payer.note_over([HopBill("first", price, 6, came, None)])
    assert payer.owing_now() == [payer._to["first", payee].account.channel_id]


def test_what_a_hop_claims_while_the_client_ends_keeps_the_last_payment_from_nobody():
    taken_up = []
    payer = SimpleNamespace(note_due=lambda *due: taken_up.append(due) or True)
    Payments(payer, list, lambda *_: None).due(Heard(), PaymentDue(b"c" * 32, b"\1", b"", True, ""))
    assert taken_up == []  # else it would be under way for ever
