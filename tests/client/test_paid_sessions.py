"""Sessions that are paid for by vouchers: nobody loses more than a window, and balances add up."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial

import msgspec
import pytest
import trio

from shoal.client.paying import voucher_payer
from shoal.client.paying.accounts import HopAccounts
from shoal.client.paying.voucher_payer import VoucherPayer
from shoal.client.ring import route_finder
from shoal.errors import NoCoverage, PaymentRequired, PaymentStopped
from shoal.ledger.settling import PaymentBooks
from shoal.ledger.vouchers.keys import ChainKey
from shoal.ledger.vouchers.payee import MICRO
from shoal.node import hop
from shoal.node.paying import payee_desk
from shoal.node.paying.payee_desk import PayeeDesk
from shoal.testing.escrow import PretendedChain
from shoal.types import Numerics, Span
from tests.one_process import FORMAT

from .conftest import PROMPT, memory_swarm

PRICE = 10**12
TOKEN_BLOCK = PRICE // MICRO
WINDOW_TOKENS = 48
FRONT, BACK = Span(0, 3), Span(3, 6)
BUDGET = 10**12
NUMERICS = Numerics(FORMAT, "auto", "rows")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    short = lambda amount, blocks: amount * blocks * WINDOW_TOKENS // MICRO  # noqa: E731
    monkeypatch.setattr(payee_desk, "window_of", short)
    monkeypatch.setattr(hop, "UNPAID_S", 0.5)
    monkeypatch.setattr(route_finder, "HEAR_WITHIN_S", 0.3)
    monkeypatch.setattr(payee_desk, "ADMIT_WITHIN_S", 0.2)
    monkeypatch.setattr(hop, "TELL_AGAIN_S", 0.1)


class Market:
    """Nodes that ask a price, and a client with a wallet."""

    def __init__(self, swarm, folder):
        self.swarm = swarm
        self.chain = PretendedChain()
        self.folder = folder
        self.desks = []
        self.key = ChainKey.generate()
        self.books = PaymentBooks.below(folder / "payer")

    async def node(self, span, kind=PayeeDesk):
        book = PaymentBooks.below(self.folder / f"payee{len(self.desks)}").paid
        address = ChainKey.generate().address

        def made(peer):
            self.desks.append(kind(peer, book, self.chain, self.chain.domain, address, PRICE, lambda: 0.0))
            return self.desks[-1]

        await self.swarm.add_node(span, payments=made)
        return self.desks[-1]

    def payer(self, kind=VoucherPayer, budget=BUDGET):
        fund = partial(self.chain.fund, self.books, self.key)
        return lambda peer: HopAccounts(
            None, kind(peer, self.key, self.books, fund, self.chain.domain, budget)
        )

    async def client(self, payer):
        return await self.swarm.add_client(accounts=payer, max_price="1", resume_s=1.0)

    async def tokens(self, client, count):
        path = str(self.swarm.model.path)
        answer = client.generate(path, PROMPT, max_tokens=count, speculate=False)
        return [token async for delta in answer for token in delta.token_ids]

    def payers(self):
        accounts = [self.books.paying.read(one) for one in self.books.paying.channel_ids()]
        return {account.terms.payee: account for account in accounts}

    def payee(self, desk):
        (account,) = desk._accounts.values()
        return account.kept


@asynccontextmanager
async def market(tmp_path, checkpoint, spans):
    async with memory_swarm(tmp_path / "home", checkpoint, []) as swarm:
        found = Market(swarm, tmp_path)
        for span in spans:
            await found.node(span)
        yield found


async def until(market, desk, holds):
    """Wait until a payee's account is as it is to be: the last voucher is signed a while after the answer."""
    with trio.fail_after(25):
        while not holds(market.payee(desk)):  # noqa: ASYNC110
            await trio.sleep(0.01)
    return market.payee(desk)


async def settled(market, desk):
    """Wait until a payee has the newest voucher that was signed for it."""
    return await until(market, desk, lambda kept: kept.paid >= market.payers()[desk._address].signed)


async def test_twenty_answers_are_paid_for_and_balances_add_up(tmp_path, checkpoint, whole):
    expected = whole.greedy(PROMPT, 12)
    async with market(tmp_path, checkpoint, [FRONT, BACK]) as there:
        client = await there.client(there.payer())
        for _ in range(20):
            assert await there.tokens(client, 12) == expected
        worked = 20 * (len(PROMPT) + len(expected) - 1)
        for desk in there.desks:
            await until(there, desk, lambda kept: kept.paid >= worked * 3 * TOKEN_BLOCK)
            account = await settled(there, desk)
            # What was computed in vain, the step behind the last token, is all that is not paid yet.
            assert 0 <= account.owed - account.paid <= 3 * TOKEN_BLOCK * 20
            kept = desk._book.read(account.channel_id)
            assert kept.voucher == account.voucher == there.payers()[desk._address].voucher
        assert len(there.payers()) == 2


def roomy(monkeypatch):
    """Windows of which some short answers are a small part."""
    monkeypatch.setattr(payee_desk, "window_of", lambda amount, blocks: amount * blocks * 4096 // MICRO)


async def test_one_voucher_pays_for_answers_that_follow_each_other_and_none_of_them_waits_for_it(
    tmp_path, checkpoint, whole, monkeypatch
):
    roomy(monkeypatch)
    monkeypatch.setattr(voucher_payer, "GATHER_S", 3600)
    signed, sign = [], voucher_payer.sign_voucher
    monkeypatch.setattr(voucher_payer, "sign_voucher", lambda *args: signed.append(args) or sign(*args))
    async with market(tmp_path, checkpoint, [FRONT, BACK]) as there:
        client = await there.client(there.payer())
        for _ in range(4):
            assert await there.tokens(client, 6) == whole.greedy(PROMPT, 6)
        assert signed == []
        monkeypatch.setattr(voucher_payer, "PAY_AT", 1 << 30)  # now the least is much
        await there.tokens(client, 6)
        worked = 5 * (len(PROMPT) + 5) * 3 * TOKEN_BLOCK
        with trio.fail_after(10):
            while any(there.payee(desk).paid < worked for desk in there.desks):  # noqa: ASYNC110
                await trio.sleep(0.01)


async def test_a_client_that_ends_pays_what_is_left(tmp_path, checkpoint, monkeypatch):
    roomy(monkeypatch)
    monkeypatch.setattr(voucher_payer, "GATHER_S", 3600)
    async with market(tmp_path, checkpoint, [Span(0, 6)]) as there:
        (desk,), around = there.desks, there.swarm.nursery
        async with trio.open_nursery() as there.swarm.nursery:
            client = await there.client(there.payer())
            await there.tokens(client, 6)
            assert there.payers()[desk._address].signed == 0
            there.swarm.nursery.cancel_scope.cancel()
        there.swarm.nursery = around
        account = await settled(there, desk)
        assert account.paid >= (len(PROMPT) + 5) * 6 * TOKEN_BLOCK
        assert not there.payers()[desk._address].under_way


class Greedy(PayeeDesk):
    """A payee that says it may be owed more than anybody has."""

    def asked(self, blocks):
        return msgspec.structs.replace(super().asked(blocks), window=1 << 62)


async def test_a_payee_may_ask_for_no_more_than_its_blocks_are_worth_beyond_what_came(tmp_path, checkpoint):
    async with market(tmp_path, checkpoint, []) as there:
        await there.node(Span(0, 6), Greedy)
        client = await there.client(there.payer())
        route = client.rings.finder.find(there.swarm.model.shape, NUMERICS, 64, set(), span=Span(0, 6))
        assert [hop.price.window for hop in route] == [4096 * 6 * TOKEN_BLOCK]


class Silent(VoucherPayer):
    """A client that takes and does not pay."""

    async def pay_due(self, channel_id, bills):
        self._paying[channel_id].pending.clear()
        self._paying[channel_id].busy = False
        return {}

    def note_over(self, bills):
        pass


async def test_a_payer_that_does_not_pay_is_stopped_at_the_window_and_told_what_it_owes(tmp_path, checkpoint):
    async with market(tmp_path, checkpoint, [Span(0, 6)]) as there:
        client = await there.client(there.payer(Silent))
        with pytest.raises((PaymentRequired, NoCoverage), match="are owed and 0 paid: this node"):
            await there.tokens(client, 100)
        (desk,) = there.desks
        account = there.payee(desk)
        assert 0 < account.owed <= account.window
        # By now it owes a window, and is let in no more.
        with pytest.raises((PaymentRequired, NoCoverage)):
            await there.tokens(client, 100)
        assert there.payee(desk).owed <= account.window


class Dying(VoucherPayer):
    """A client that pays nothing and writes nothing any more from the moment at which it is killed."""

    killed = False

    async def pay_due(self, channel_id, bills):
        if not self.killed:
            return await super().pay_due(channel_id, bills)
        self._paying[channel_id].pending.clear()
        self._paying[channel_id].busy = False
        return {}

    def note_over(self, bills):
        if not self.killed:
            super().note_over(bills)


async def test_a_client_that_is_killed_in_a_later_session_comes_back_and_pays_for_both(
    tmp_path, checkpoint, whole, monkeypatch
):
    async with market(tmp_path, checkpoint, [Span(0, 6)]) as there:
        (desk,) = there.desks
        client = await there.client(there.payer(Dying))
        await there.tokens(client, 12)
        await settled(there, desk)
        with trio.fail_after(10):
            while there.payers()[desk._address].under_way:  # noqa: ASYNC110
                await trio.sleep(0.01)
        monkeypatch.setattr(Dying, "killed", True)
        with pytest.raises((PaymentRequired, NoCoverage)):
            await there.tokens(client, 100)
        lost = there.payee(desk)
        assert 0.9 * lost.window < lost.owed - lost.paid <= lost.window
        # Whoever comes back asks for little, and ends at once.
        for _ in range(2):
            again = await there.client(there.payer())
            assert await there.tokens(again, 12) == whole.greedy(PROMPT, 12)
        await until(there, desk, lambda kept: kept.owed - kept.paid <= 2 * 6 * TOKEN_BLOCK)


class Late(VoucherPayer):
    """A client whose vouchers take their time."""

    async def pay_due(self, channel_id, bills):
        await trio.sleep(0.15)
        return await super().pay_due(channel_id, bills)


async def test_a_session_that_waits_for_a_voucher_goes_on_where_it_was(tmp_path, checkpoint, whole):
    async with market(tmp_path, checkpoint, [FRONT, BACK]) as there:
        client = await there.client(there.payer(Late))
        assert await there.tokens(client, 80) == whole.greedy(PROMPT, 80)


async def test_a_payee_that_is_gone_has_had_no_more_than_a_window_too_much_and_the_next_is_paid(
    tmp_path, checkpoint, whole
):
    async with market(tmp_path, checkpoint, [FRONT, BACK, BACK]) as there:
        client = await there.client(there.payer())
        said, gone = [], None
        path = str(there.swarm.model.path)
        answer = client.generate(path, PROMPT, max_tokens=90, speculate=False)
        async for delta in answer:
            said += delta.token_ids
            if len(said) >= 50 and gone is None:
                gone = answer.route[-1].peer
                there.swarm.world.kill(gone)
        assert said == whole.greedy(PROMPT, 90)
        peers = [network.peer for network in there.swarm.networks]
        lost, taker = peers.index(gone), 3 - peers.index(gone)
        paid = there.payers()
        account = there.payee(there.desks[lost])
        assert paid[there.desks[lost]._address].signed <= account.owed + account.window
        assert account.owed - account.paid <= account.window
        new = await settled(there, there.desks[taker])
        assert new.paid >= 40 * 3 * TOKEN_BLOCK


async def test_a_spent_budget_ends_a_session_and_says_so(tmp_path, checkpoint):
    async with market(tmp_path, checkpoint, [Span(0, 6)]) as there:
        client = await there.client(there.payer(budget=60 * 6 * TOKEN_BLOCK))
        with pytest.raises((PaymentStopped, PaymentRequired, NoCoverage), match=r"spent|in escrow"):
            await there.tokens(client, 100)
        account = there.payee(there.desks[0])
        assert account.owed <= account.deposit


async def test_a_price_that_is_raised_holds_for_new_sessions_alone(tmp_path, checkpoint):
    async with market(tmp_path, checkpoint, [Span(0, 6)]) as there:
        client = await there.client(there.payer())
        (desk,) = there.desks
        async with client.session(str(there.swarm.model.path), tokens=64) as session:
            await session.step(PROMPT[:10])
            before = there.payee(desk).owed_micro
            desk.price *= 2
            await session.step(PROMPT[10:20])
            assert there.payee(desk).owed_micro - before <= 10 * 6 * PRICE
        with pytest.raises(PaymentRequired, match="were offered"):
            await there.tokens(client, 2)


async def test_a_client_without_a_wallet_goes_over_nobody_who_asks(tmp_path, checkpoint):
    async with market(tmp_path, checkpoint, [Span(0, 6)]) as there:
        poor = await there.swarm.add_client(resume_s=0.2)
        with pytest.raises(NoCoverage, match="served only by nodes that ask"):
            await there.tokens(poor, 2)
        willing = await there.swarm.add_client(max_price="1", resume_s=0.2)
        with pytest.raises(PaymentStopped, match="no wallet"):
            await there.tokens(willing, 2)
        # That it cannot pay is not held against who asks.
        assert not any(one.faults for one in willing.rings.finder.reputation._records.values())
