"""The contracts, on both chains: what each lets whom do, and what it costs."""

from __future__ import annotations

import itertools
import json
from typing import Any

import msgspec
import pytest

from shoal.errors import RemoteProtocolError, UsageError
from shoal.ledger.contracts.artefacts import FILE, NAMES, artefact
from shoal.ledger.contracts.evidence import (
    countersign,
    find_equivocation,
    question_of,
    registry_domain,
    split_signature,
)
from shoal.ledger.contracts.merkle import merkle_path, merkle_root
from shoal.ledger.vouchers.keys import HALF_ORDER, ChainKey
from shoal.ledger.vouchers.typed_data import parse_address, show_address
from shoal.ledger.vouchers.voucher import PaymentTerms, escrow_domain, sign_voucher
from shoal.trust.receipt import Receipt, Work
from tests.ledger.compiler import compile_contracts
from tests.ledger.engines import Engine

ETHER = 10**18
WEEK_S = 7 * 86400
salts = itertools.count()
gas: dict[tuple[str, str], int] = {}


@pytest.fixture(scope="module", autouse=True)
def gas_table() -> Any:
    """Print what each call took, for whoever runs with -s or -rP."""
    yield
    for (engine, call), used in sorted(gas.items()):
        print(f"gas {engine:11} {call:24} {used:>8}")


def test_a_fresh_compile_equals_what_the_package_carries() -> None:
    assert compile_contracts() == json.loads(FILE.read_text())


@pytest.mark.parametrize("name", NAMES)
def test_what_is_deployed_is_what_was_compiled_byte_for_byte(engine: Engine, name: Any) -> None:
    contract = engine.deploy(name)
    assert "0x" + engine.w3.eth.get_code(contract.address).hex() == artefact(name).runtime


class PaidChannel:
    """A payment channel between two new accounts."""

    def __init__(self, engine: Engine, escrow: Any) -> None:
        self.engine, self.escrow = engine, escrow
        accounts = engine.w3.eth.accounts
        self.payer, self.payee, self.other = accounts[1:4]
        self.key = ChainKey.from_secret((next(salts) + 1).to_bytes(32, "big"))
        self.domain = escrow_domain(engine.w3.eth.chain_id, parse_address(escrow.address))
        self.terms = PaymentTerms(
            payer=parse_address(self.payer),
            payer_signer=self.key.address,
            payee=parse_address(self.payee),
            payee_signer=parse_address(self.payee),
            salt=next(salts).to_bytes(32, "big"),
        )
        self.id = self.terms.channel_id(self.domain)

    @property
    def tuple(self) -> Any:
        return terms_tuple(self.terms)

    def deposit(self, amount: int) -> Any:
        return self.engine.send(self.escrow.functions.deposit(self.tuple), self.payer, amount)

    def redemption(self, amount: int, key: ChainKey | None = None, **domain: Any) -> Any:
        domain = msgspec.structs.replace(self.domain, **domain)
        signature = sign_voucher(key or self.key, domain, self.id, amount).signature
        return self.redemption_signed(amount, signature)

    def redemption_signed(self, amount: int, signature: bytes) -> Any:
        r, s, v = split_signature(signature)
        return self.escrow.functions.redeem(
            self.tuple, amount, r.to_bytes(32, "big"), s.to_bytes(32, "big"), v
        )

    def state(self) -> tuple[int, int, int]:
        return tuple(self.escrow.functions.channel(self.id).call())

    def held(self) -> int:
        return self.engine.w3.eth.get_balance(self.escrow.address)


def terms_tuple(terms: PaymentTerms) -> Any:
    addresses = (terms.payer, terms.payer_signer, terms.payee, terms.payee_signer, terms.token)
    return (*map(show_address, addresses), terms.delay_s, terms.salt)


@pytest.fixture
def paid(engine: Engine) -> PaidChannel:
    return PaidChannel(engine, engine.deploy("Escrow"))


def note(engine: Engine, call: str, receipt: Any) -> int:
    gas[engine.name, call] = receipt["gasUsed"]
    return receipt["gasUsed"]


def test_a_payment_channel_has_the_name_that_we_and_x402_give_it(paid: PaidChannel) -> None:
    assert paid.escrow.functions.channel_id(paid.tuple).call() == paid.id


def test_vouchers_are_redeemed_each_for_what_it_adds(paid: PaidChannel) -> None:
    engine = paid.engine
    note(engine, "open", paid.deposit(2 * ETHER))
    before = engine.w3.eth.get_balance(paid.payee)
    assert note(engine, "redeem, the first", engine.send(paid.redemption(ETHER), paid.payee)) <= 70_000
    assert note(engine, "redeem, a later one", engine.send(paid.redemption(2 * ETHER), paid.payee)) <= 70_000
    gained = engine.w3.eth.get_balance(paid.payee) - before
    assert 2 * ETHER - 10**15 < gained <= 2 * ETHER  # less what the two transactions cost
    assert paid.state() == (2 * ETHER, 2 * ETHER, 0)
    assert paid.held() == 0


def test_more_can_be_paid_in_while_it_is_open(paid: PaidChannel) -> None:
    paid.deposit(ETHER)
    assert paid.engine.refusal(paid.redemption(2 * ETHER), paid.payee) == "over deposit"
    note(paid.engine, "top up", paid.deposit(ETHER))
    paid.engine.send(paid.redemption(2 * ETHER), paid.payee)


def test_what_was_not_signed_here_by_the_payer_is_not_paid_out(paid: PaidChannel) -> None:
    paid.deposit(2 * ETHER)
    refusal = paid.engine.refusal
    assert refusal(paid.redemption(ETHER, ChainKey.from_secret(b"\7" * 32)), paid.payee) == "signature"
    assert refusal(paid.redemption(ETHER, chain_id=1), paid.payee) == "signature"
    assert refusal(paid.redemption(ETHER, contract=b"\7" * 20), paid.payee) == "signature"
    assert refusal(paid.redemption(ETHER), paid.other) == "payee"
    good = sign_voucher(paid.key, paid.domain, paid.id, ETHER).signature
    r, s, v = split_signature(good)
    other_form = r.to_bytes(32, "big") + (2 * HALF_ORDER + 1 - s).to_bytes(32, "big") + bytes([55 - v])
    assert refusal(paid.redemption_signed(ETHER, other_form), paid.payee) == "signature"
    assert refusal(paid.redemption_signed(ETHER, bytes(65)), paid.payee) == "signature"
    paid.engine.send(paid.redemption(ETHER), paid.payee)
    assert refusal(paid.redemption(ETHER), paid.payee) == "stale"
    assert refusal(paid.redemption(ETHER - 1), paid.payee) == "stale"
    assert refusal(paid.redemption_signed((1 << 128) + 5, good), paid.payee) == "over deposit"


def test_money_of_one_channel_is_not_paid_out_for_another(paid: PaidChannel) -> None:
    other = PaidChannel(paid.engine, paid.escrow)
    paid.deposit(ETHER)
    other.deposit(ETHER)
    stolen = sign_voucher(paid.key, paid.domain, paid.id, ETHER).signature
    assert paid.engine.refusal(other.redemption_signed(ETHER, stolen), other.payee) == "signature"


def test_a_payer_gets_back_what_is_left_after_the_delay_in_which_the_payee_redeems(paid: PaidChannel) -> None:
    engine, calls = paid.engine, paid.escrow.functions
    paid.deposit(2 * ETHER)
    assert engine.refusal(calls.withdraw(paid.tuple), paid.payer) == "not yet"
    assert engine.refusal(calls.request_close(paid.tuple), paid.payee) == "payer"
    note(engine, "request close", engine.send(calls.request_close(paid.tuple), paid.payer))
    assert engine.refusal(calls.request_close(paid.tuple), paid.payer) == "closing"
    assert engine.refusal(calls.deposit(paid.tuple), paid.payer, ETHER) == "closing"
    assert engine.refusal(calls.withdraw(paid.tuple), paid.payer) == "not yet"
    engine.send(paid.redemption(ETHER), paid.payee)
    engine.pass_time(86_400)
    note(engine, "withdraw", engine.send(calls.withdraw(paid.tuple), paid.payer))
    assert paid.state() == (ETHER, ETHER, 0)
    assert paid.held() == 0
    assert engine.refusal(calls.withdraw(paid.tuple), paid.payer) == "not yet"


def test_a_channel_that_is_opened_again_pays_no_voucher_twice(paid: PaidChannel) -> None:
    engine = paid.engine
    paid.deposit(2 * ETHER)
    engine.send(paid.redemption(ETHER), paid.payee)
    note(engine, "give back", engine.send(paid.escrow.functions.give_back(paid.tuple), paid.payee))
    paid.deposit(2 * ETHER)
    assert engine.refusal(paid.redemption(ETHER), paid.payee) == "stale"
    assert paid.state() == (3 * ETHER, ETHER, 0)


def test_only_a_payee_can_give_back_at_once(paid: PaidChannel) -> None:
    paid.deposit(ETHER)
    assert paid.engine.refusal(paid.escrow.functions.give_back(paid.tuple), paid.payer) == "payee"


def test_terms_that_would_lock_money_up_are_refused(paid: PaidChannel) -> None:
    calls, engine = paid.escrow.functions, paid.engine
    good = list(paid.tuple)
    zero = show_address(bytes(20))
    for place, value, why in (
        (0, zero, "nobody"),
        (1, zero, "nobody signs"),
        (2, zero, "nobody"),
        (4, paid.payee, "only the chain's coin"),
        (5, 899, "delay"),
        (5, 30 * 86400 + 1, "delay"),
    ):
        terms = (*good[:place], value, *good[place + 1 :])
        assert engine.refusal(calls.deposit(terms), paid.payer, ETHER) == why
    assert engine.refusal(calls.deposit(paid.tuple), paid.payer) == "nothing"
    assert engine.refusal(calls.request_close(paid.tuple), paid.payer) == "unknown"


# --- The registry: a stake that an equivocating signer loses.


def receipt(**changes: Any) -> Receipt:
    work = Work(b"s" * 16, b"n" * 16, b"o" * 16, 1, 0, 4, "sha256:" + "0" * 64, "3-int8-f32-x", "float32")
    found = Receipt(work, 3, 128, 0xFFFFFFFF, b"c" * 32, b"w" * 32, b"b" * 32)
    return msgspec.structs.replace(found, **changes)


@pytest.fixture
def staked(engine: Engine) -> tuple[Engine, Any, ChainKey, Any]:
    """A registry, the key of a node that has staked one ether there, and its domain."""
    registry = engine.deploy("Registry")
    key = ChainKey.from_secret((next(salts) + 1000).to_bytes(32, "big"))
    engine.give(show_address(key.address), 2 * ETHER)
    call = registry.functions.register(engine.w3.eth.accounts[1], b"p" * 32, [b"m" * 32])
    note(engine, "register", send_signed(engine, call, key, ETHER))
    return engine, registry, key, registry_domain(engine.w3.eth.chain_id, parse_address(registry.address))


def send_signed(engine: Engine, call: Any, key: ChainKey, value: int = 0) -> Any:
    from eth_account import Account

    sender = show_address(key.address)
    options = {
        "from": sender,
        "value": value,
        "gas": 500_000,
        "gasPrice": engine.w3.eth.gas_price,
        "nonce": engine.w3.eth.get_transaction_count(sender),
        "chainId": engine.w3.eth.chain_id,
    }
    signed = Account.sign_transaction(call.build_transaction(options), key.secret)
    found = engine.receipt(engine.w3.eth.send_raw_transaction(signed.raw_transaction))
    assert found["status"] == 1
    return found


def test_a_node_is_registered_with_its_stake_peer_and_models(staked: Any) -> None:
    engine, registry, key, _ = staked
    node = registry.functions.nodes(show_address(key.address)).call()
    assert node == (ETHER, engine.w3.eth.accounts[1], b"p" * 32, 0)
    assert registry.functions.models_of(show_address(key.address)).call() == [b"m" * 32]
    call = registry.functions.register(engine.rich, b"p" * 32, [])
    assert engine.refusal(call, engine.rich, 10**16 - 1) == "stake"


def test_who_says_two_things_about_one_question_loses_its_stake(staked: Any) -> None:
    engine, registry, key, domain = staked
    one, other = receipt(), receipt(went=b"W" * 32)
    signatures = (countersign(key, domain, one), countersign(key, domain, other))
    found = find_equivocation(domain, one, other, signatures)
    assert found.delegate == key.address
    reporter = engine.w3.eth.accounts[4]
    before = engine.w3.eth.get_balance(reporter)
    used = note(engine, "slash", engine.send(registry.functions.slash(*found.arguments), reporter))
    assert used <= 60_000
    assert ETHER // 2 - 10**15 < engine.w3.eth.get_balance(reporter) - before <= ETHER // 2
    assert engine.w3.eth.get_balance(registry.address) == ETHER // 2  # nobody's, for ever
    assert engine.refusal(registry.functions.slash(*found.arguments), reporter) == "no stake"


def test_a_forged_accusation_takes_nothing(staked: Any) -> None:
    engine, registry, key, domain = staked
    reporter = engine.w3.eth.accounts[4]
    one, other = receipt(), receipt(went=b"W" * 32)
    liar = ChainKey.from_secret(b"\5" * 32)
    good, forged = countersign(key, domain, one), countersign(liar, domain, other)

    def slash(first: Receipt, second: Receipt, a: bytes, b: bytes) -> str:
        call = registry.functions.slash(
            question_of(first), first.hash, second.hash, split_signature(a), split_signature(b)
        )
        return engine.refusal(call, reporter)

    assert slash(one, other, good, forged) == "signers"
    assert slash(one, one, good, good) == "same"
    elsewhere = registry_domain(1, domain.contract)
    assert slash(one, other, countersign(key, elsewhere, one), countersign(key, elsewhere, other)) in (
        "signers",
        "no stake",
    )
    # An honest node that is asked again, in another opening or for another nonce, answers another question.
    for changed in ({"opening": b"O" * 16}, {"nonce": b"N" * 16}, {"session": b"S" * 16}):
        again = receipt(work=msgspec.structs.replace(one.work, **changed), went=b"W" * 32)
        assert question_of(again) != question_of(one)
        assert slash(one, again, good, countersign(key, domain, again)) == "signers"
    assert slash(one, other, bytes(65), bytes(65)) == "signature"
    assert engine.w3.eth.get_balance(registry.address) == ETHER


def test_a_stake_can_be_lost_until_the_day_it_is_given_back(staked: Any) -> None:
    engine, registry, key, domain = staked
    owner, delegate = engine.w3.eth.accounts[1], show_address(key.address)
    assert engine.refusal(registry.functions.leave(delegate), engine.rich) == "owner"
    note(engine, "leave", engine.send(registry.functions.leave(delegate), owner))
    assert engine.refusal(registry.functions.leave(delegate), owner) == "leaving"
    stay = registry.functions.register(owner, b"p" * 32, [])
    assert engine.refusal(stay, delegate) == "leaving"  # a stolen delegate cannot keep the owner's stake
    assert engine.refusal(registry.functions.withdraw(delegate), owner) == "not yet"
    one, other = receipt(), receipt(came=b"C" * 32)
    pair = (countersign(key, domain, one), countersign(key, domain, other))
    slash = registry.functions.slash(*find_equivocation(domain, one, other, pair).arguments)
    slash.call({"from": engine.rich})  # it could still be lost
    engine.pass_time(WEEK_S)
    note(engine, "withdraw the stake", engine.send(registry.functions.withdraw(delegate), engine.rich))
    assert engine.w3.eth.get_balance(registry.address) == 0
    assert engine.refusal(slash, engine.rich) == "no stake"


def test_what_proves_nothing_is_no_evidence() -> None:
    domain = registry_domain(1, b"r" * 20)
    key, other_key = ChainKey.from_secret(b"\1" * 32), ChainKey.from_secret(b"\2" * 32)
    one, other = receipt(), receipt(went=b"W" * 32)
    good = countersign(key, domain, one)
    for second, signature in (
        (one, good),
        (other, countersign(other_key, domain, other)),
        (other, countersign(key, registry_domain(2, domain.contract), other)),
        (other, bytes(65)),
    ):
        with pytest.raises(UsageError):
            find_equivocation(domain, one, second, (good, signature))
    with pytest.raises(RemoteProtocolError):
        later = receipt(window=4)
        find_equivocation(domain, one, later, (good, countersign(key, domain, later)))


# --- The anchor.


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_a_leaf_is_found_in_its_tree_and_in_no_other_place(process_engine: Engine, count: int) -> None:
    anchor = process_engine.deploy("Anchor")
    leaves = [bytes([n]) * 32 for n in range(1, count + 1)]
    root = merkle_root(leaves)
    for index, leaf in enumerate(leaves):
        path = merkle_path(leaves, index)
        assert anchor.functions.included(root, leaf, index, path).call()
        assert not anchor.functions.included(root, b"\x77" * 32, index, path).call()
        assert not anchor.functions.included(root, leaf, index + (1 << len(path)), path).call()
        assert not anchor.functions.included(root, leaf, index ^ 1, path).call() or count == 1


def test_a_tree_has_leaves_and_not_too_many() -> None:
    for leaves, index in (([], 0), ([b"1" * 32], 1), ([b"1" * 32], -1)):
        with pytest.raises(UsageError):
            merkle_path(leaves, index)


def test_roots_stand_in_the_order_in_which_they_came(engine: Engine) -> None:
    anchor = engine.deploy("Anchor")
    sender, other = engine.w3.eth.accounts[1:3]
    heads = []
    for n in (1, 2):
        note(engine, f"anchor, number {n}", engine.send(anchor.functions.anchor(bytes([n]) * 32, n), sender))
        heads.append(anchor.functions.heads(sender).call())
    engine.send(anchor.functions.anchor(b"\3" * 32, 3), other)
    assert [number for number, _ in heads] == [1, 2]
    assert anchor.functions.heads(sender).call() == heads[1]
    events = anchor.events.Anchored().get_logs(from_block=0)
    order = [(event["args"]["sender"], event["args"]["number"]) for event in events]
    assert order == [(sender, 1), (sender, 2), (other, 1)]
    assert events[1]["args"]["head"] == heads[1][1]
    assert engine.refusal(anchor.functions.anchor(b"\1" * 32, 0), sender) == "nothing"
