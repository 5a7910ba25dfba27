"""Whatever is called in whichever order, no money comes from nowhere, and none is lost.

The contracts run in this process without blocks or transactions, so that thousands of calls take seconds. A
model in Python says of each call whether it must go well. With SHOAL_FUZZ_STEPS=10000 there are more.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import pytest
from eth.vm.message import Message
from eth.vm.transaction_context import BaseTransactionContext
from eth_tester import EthereumTester, PyEVMBackend
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from shoal.ledger.contracts.artefacts import ContractName, artefact
from shoal.ledger.contracts.evidence import registry_domain, split_signature
from shoal.ledger.vouchers.keys import ChainKey
from shoal.ledger.vouchers.typed_data import hash_typed, keccak256, word
from shoal.ledger.vouchers.voucher import PaymentTerms, escrow_domain, sign_voucher

STEPS = int(os.environ.get("SHOAL_FUZZ_STEPS", "600"))
STEPS_A_RUN = 50
KEYS = [ChainKey.from_secret(bytes([n]) * 32) for n in range(1, 5)]
GIVEN = 10**20
SEND = b"\x99" * 20

people = st.integers(0, len(KEYS) - 1)
callers = st.one_of(st.none(), st.none(), people)
"""Who calls: none is whoever may."""
amounts = st.one_of(st.integers(0, 50), st.integers(1, 10**18), st.just((1 << 128) + 7))


class Evm:
    """Calls of contracts, on a state of this process."""

    def __init__(self) -> None:
        chain = EthereumTester(PyEVMBackend()).backend.chain
        self.state = chain.get_vm().state
        self.chain_id = chain.chain_id
        self.now = self.state.timestamp
        for key in KEYS:
            self.state.set_balance(key.address, GIVEN)

    def deploy(self, name: ContractName, address: bytes) -> bytes:
        self.state.set_code(address, bytes.fromhex(artefact(name).runtime.removeprefix("0x")))
        return address

    def call(self, sender: bytes, to: bytes, data: bytes, value: int = 0) -> bool:
        """Whether it went well. What did not has changed nothing."""
        if self.state.get_balance(sender) < value:
            return False
        self.state.execution_context._timestamp = self.now
        message = Message(
            gas=2_000_000, to=to, sender=sender, value=value, data=data, code=self.state.get_code(to)
        )
        context = BaseTransactionContext(gas_price=0, origin=sender)
        return self.state.computation_class.apply_message(self.state, message, context).is_success

    def balance(self, address: bytes) -> int:
        return self.state.get_balance(address)


def selector(contract: ContractName, function: str) -> bytes:
    (found,) = (one for one in artefact(contract).abi if one.get("name") == function)

    def kind(argument: dict[str, Any]) -> str:
        if argument["type"] == "tuple":
            return f"({','.join(map(kind, argument['components']))})"
        return argument["type"]

    return keccak256(f"{function}({','.join(map(kind, found['inputs']))})".encode())[:4]


@dataclass
class Channel:
    """What the model knows of one payment channel."""

    terms: PaymentTerms
    payer: int
    signer: int
    payee: int
    total: int = 0
    redeemed: int = 0
    closes_at: int = 0


@dataclass
class Staked:
    """What the model knows of one node."""

    stake: int = 0
    owner: int | None = None
    leaves_at: int = 0


@dataclass
class Model:
    channels: list[Channel]
    nodes: list[Staked] = field(default_factory=lambda: [Staked() for _ in KEYS])
    burned: int = 0


class Money(RuleBasedStateMachine):
    """Everybody calls everything."""

    well = refused = 0

    def __init__(self) -> None:
        super().__init__()
        self.evm = Evm()
        self.escrow = self.evm.deploy("Escrow", b"\x51" * 20)
        self.registry = self.evm.deploy("Registry", b"\x52" * 20)
        self.domain = escrow_domain(self.evm.chain_id, self.escrow)
        self.model = Model([self.channel(0, 0, 1), self.channel(1, 3, 0), self.channel(2, 2, 2)])
        self.all = self.total()

    def channel(self, payer: int, signer: int, payee: int) -> Channel:
        terms = PaymentTerms(
            payer=KEYS[payer].address,
            payer_signer=KEYS[signer].address,
            payee=KEYS[payee].address,
            payee_signer=KEYS[payee].address,
            delay_s=900,
        )
        return Channel(terms, payer, signer, payee)

    def total(self) -> int:
        return sum(map(self.evm.balance, [*(key.address for key in KEYS), self.escrow, self.registry]))

    def ask(self, who: int, contract: ContractName, function: str, data: bytes, value: int = 0) -> bool:
        to = self.escrow if contract == "Escrow" else self.registry
        well = self.evm.call(KEYS[who].address, to, selector(contract, function) + data, value)
        Money.well, Money.refused = Money.well + well, Money.refused + (not well)
        return well

    def terms(self, channel: Channel) -> bytes:
        t = channel.terms
        addresses = (t.payer, t.payer_signer, t.payee, t.payee_signer, t.token)
        return b"".join(map(word, addresses)) + word(t.delay_s) + t.salt

    @initialize(paid_in=st.tuples(*[st.integers(0, 10**18)] * 3), stakes=st.tuples(*[st.booleans()] * 4))
    def begin(self, paid_in: tuple[int, ...], stakes: tuple[bool, ...]) -> None:
        """So that there is something to be moved, whichever rules a run has."""
        for n, amount in enumerate(paid_in):
            self.deposit(n, n, amount)
        for n, staked in enumerate(stakes):
            self.register(n, n, 10**17 if staked else 0)

    @rule(n=st.integers(0, 2), who=people, amount=amounts)
    def deposit(self, n: int, who: int, amount: int) -> None:
        c = self.model.channels[n]
        may = 0 < amount <= self.evm.balance(KEYS[who].address) and not c.closes_at
        assert self.ask(who, "Escrow", "deposit", self.terms(c), amount) == may
        c.total += amount if may else 0

    @rule(n=st.integers(0, 2), other=st.integers(0, 2), who=people, signer=people, amount=amounts)
    def redeem_anything(self, n: int, other: int, who: int, signer: int, amount: int) -> None:
        self.redeem(n, other, who, signer, amount)

    @rule(n=st.integers(0, 2), more=st.integers(-1, 60), by=st.integers(0, 9))
    def redeem_what_may_be_right(self, n: int, more: int, by: int) -> None:
        c = self.model.channels[n]
        self.redeem(n, n, c.payee if by else c.payer, c.signer, max(0, c.redeemed + more))

    @rule(n=st.integers(0, 2))
    def redeem_all(self, n: int) -> None:
        c = self.model.channels[n]
        self.redeem(n, n, c.payee, c.signer, c.total)

    def redeem(self, n: int, other: int, who: int, signer: int, amount: int) -> None:
        c = self.model.channels[n]
        signed = self.model.channels[other].terms.channel_id(self.domain)
        signature = bytes(65)
        if amount < 1 << 128:
            signature = sign_voucher(KEYS[signer], self.domain, signed, amount).signature
        r, s, v = split_signature(signature)
        may = who == c.payee and signer == c.signer and n == other and c.redeemed < amount <= c.total
        before = self.evm.balance(KEYS[c.payee].address)
        data = self.terms(c) + word(amount) + word(r) + word(s) + word(v)
        assert self.ask(who, "Escrow", "redeem", data) == may
        paid = amount - c.redeemed if may else 0
        assert self.evm.balance(KEYS[c.payee].address) - before == paid
        c.redeemed += paid

    @rule(n=st.integers(0, 2), who=callers)
    def request_close(self, n: int, who: int | None) -> None:
        c = self.model.channels[n]
        who = c.payer if who is None else who
        may = who in (c.payer, c.signer) and c.total > 0 and not c.closes_at
        assert self.ask(who, "Escrow", "request_close", self.terms(c)) == may
        if may:
            c.closes_at = self.evm.now + 900

    @rule(n=st.integers(0, 2), who=people)
    def withdraw(self, n: int, who: int) -> None:
        c = self.model.channels[n]
        may = bool(c.closes_at) and self.evm.now >= c.closes_at and c.total > c.redeemed
        self.take_back(c, who, "withdraw", may)

    @rule(n=st.integers(0, 2), who=callers)
    def give_back(self, n: int, who: int | None) -> None:
        c = self.model.channels[n]
        who = c.payee if who is None else who
        self.take_back(c, who, "give_back", who == c.payee and c.total > c.redeemed)

    def take_back(self, c: Channel, who: int, function: str, may: bool) -> None:
        before = self.evm.balance(KEYS[c.payer].address)
        assert self.ask(who, "Escrow", function, self.terms(c)) == may
        assert self.evm.balance(KEYS[c.payer].address) - before == (c.total - c.redeemed if may else 0)
        if may:
            c.total, c.closes_at = c.redeemed, 0

    @rule(who=people, owner=people, amount=st.sampled_from([0, 10**15, 10**16, 10**17, 10**18]))
    def register(self, who: int, owner: int, amount: int) -> None:
        node = self.model.nodes[who]
        may = (
            node.stake + amount >= 10**16
            and not node.leaves_at
            and self.evm.balance(KEYS[who].address) >= amount
        )
        data = word(KEYS[owner].address) + bytes(32) + word(96) + word(1) + b"m" * 32
        assert self.ask(who, "Registry", "register", data, amount) == may
        if may:
            node.owner = owner if node.owner is None else node.owner
            node.stake += amount

    @rule(n=people, who=callers)
    def leave(self, n: int, who: int | None) -> None:
        node = self.model.nodes[n]
        who = n if who is None else who
        may = who in (n, node.owner) and node.stake > 0 and not node.leaves_at
        assert self.ask(who, "Registry", "leave", word(KEYS[n].address)) == may
        if may:
            node.leaves_at = self.evm.now + 7 * 86400

    @rule(n=people, who=people)
    def withdraw_stake(self, n: int, who: int) -> None:
        node = self.model.nodes[n]
        may = bool(node.leaves_at) and self.evm.now >= node.leaves_at
        owner = KEYS[node.owner].address if node.owner is not None else bytes(20)
        before = self.evm.balance(owner)
        assert self.ask(who, "Registry", "withdraw", word(KEYS[n].address)) == may
        assert self.evm.balance(owner) - before == (node.stake if may else 0)
        if may:
            self.model.nodes[n] = Staked()

    @rule(one=people, other=callers, who=people, same=st.booleans())
    def slash(self, one: int, other: int | None, who: int, same: bool) -> None:
        other = one if other is None else other
        domain = registry_domain(self.evm.chain_id, self.registry)
        contents = (b"1" * 32, b"1" * 32 if same else b"2" * 32)
        kind = keccak256(b"Receipt(bytes32 question,bytes32 content)")
        data = b"q" * 32 + b"".join(contents)
        for n, content in zip((one, other), contents, strict=True):
            signature = KEYS[n].sign(hash_typed(domain, kind, b"q" * 32 + content))
            data += b"".join(map(word, split_signature(signature)))
        node = self.model.nodes[one]
        may = not same and one == other and node.stake > 0
        assert self.ask(who, "Registry", "slash", data) == may
        if may:
            self.model.burned += node.stake - node.stake // 2
            node.stake = 0

    @rule(seconds=st.sampled_from([1, 450, 900, 8 * 86400]))
    def pass_time(self, seconds: int) -> None:
        self.evm.now += seconds

    @invariant()
    def money_is_where_the_model_says(self) -> None:
        assert self.total() == self.all
        channels = self.model.channels
        assert self.evm.balance(self.escrow) == sum(c.total - c.redeemed for c in channels)
        staked = sum(node.stake for node in self.model.nodes)
        assert self.evm.balance(self.registry) == staked + self.model.burned


def test_funds_are_conserved_whatever_is_called() -> None:
    runs = settings(max_examples=STEPS // STEPS_A_RUN, stateful_step_count=STEPS_A_RUN, deadline=None)
    Money.well = Money.refused = 0
    run_state_machine_as_test(Money, settings=runs)
    print(f"{Money.well} calls went well and {Money.refused} were refused, each as the model says")
    assert Money.well > STEPS // 10
    assert Money.refused > STEPS // 10


def test_the_model_notices_money_from_nowhere() -> None:
    machine = Money()
    machine.evm.state.set_balance(machine.escrow, 1)
    with pytest.raises(AssertionError):
        machine.money_is_where_the_model_says()
