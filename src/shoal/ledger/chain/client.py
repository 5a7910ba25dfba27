"""A chain's node, asked over JSON-RPC. To be called from a thread: it waits.

Whatever the node says is checked where it matters: it must be of the chain that is configured, and our
contracts must stand there byte for byte as they were compiled.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from shoal.errors import ChainError
from shoal.ledger.chain.deployment import (
    Deployment,
    check_test_chain,
    check_url,
    confirmations_of,
)
from shoal.ledger.chain.pending import Action, Fees, Pending, TransactionView, next_action
from shoal.ledger.chain.rpc import Answered, ask, connect
from shoal.ledger.contracts.artefacts import NAMES, ContractName, artefact
from shoal.ledger.contracts.evidence import Equivocation, split_signature
from shoal.ledger.recursion import recursion_limit_kept
from shoal.ledger.vouchers.keys import ChainKey
from shoal.ledger.vouchers.typed_data import ADDRESS, WORD, ChainAddress, parse_address, show_address
from shoal.ledger.vouchers.voucher import PaymentTerms, Voucher

POLL_S = 1.0
MOST_POLL_S = 15.0
"""Between two questions to a node that is down."""
LEAST_SPAN = 500
"""Blocks that every node looks through at once."""
MOST_COST = 10**17
"""In wei, of a transaction's gas: a node names the price, and might name any."""
DOWN_S = 2 * 3600.0
"""How long a node that is down is asked again, once something was sent."""
GAS_MARGIN_PERCENT = 125
"""Of what the node expects: what it expects is of the state before others' transactions."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EscrowState:
    """A payment channel as the chain has it."""

    deposit: int
    redeemed: int
    closes_at: int | None


class ChainClient:
    """Asks and sends.

    Args:
        provider: how the node is reached; by HTTP at the deployment's address if not given.
        confirmations: blocks after which a transaction is believed to stay; as the chain needs if not given.
        most_cost: what the gas of one transaction may cost at most, in wei.
    """

    def __init__(
        self,
        deployment: Deployment,
        provider: Any = None,
        *,
        confirmations: int | None = None,
        most_cost: int = MOST_COST,
        poll_s: float = POLL_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.deployment = deployment
        self._w3 = connect(deployment.url, provider)
        self._confirmations = confirmations or confirmations_of(deployment.chain_id)
        self._most_cost = most_cost
        self._poll_s = poll_s
        self._clock = clock
        self._sleep = sleep

    def check(self) -> None:
        """See that the node is of our chain, and that our contracts are there.

        Raises:
            ChainError: down, other chain, or no contract.
        """
        self.check_chain()
        for name in NAMES:
            self._check_code(name, self.deployment.contracts[name])

    def balance(self, address: ChainAddress) -> int:
        """What an address has, in wei.

        Raises:
            ChainError: down.
        """
        return self._ask(lambda: int(self._w3.eth.get_balance(_shown(address))))

    def now(self) -> int:
        """The time of the newest block: by this clock payment channels close.

        Raises:
            ChainError: down.
        """
        return self._ask(lambda: int(self._newest_block()["timestamp"]))

    def gas_price(self) -> int:
        """What a unit of gas costs now, in wei.

        Raises:
            ChainError: down.
        """
        return self._ask(lambda: int(self._w3.eth.gas_price))

    def escrow_state(self, channel_id: bytes) -> EscrowState:
        """What is in escrow of a payment channel, in the newest block that is believed to stay.

        Raises:
            ChainError: down.
        """
        deposit, redeemed, closes_at = self.read(self.contract("Escrow").functions.channel(channel_id))
        return EscrowState(deposit, redeemed, closes_at or None)

    def read(self, call: Any) -> Any:
        """What a contract says, in the newest block that is believed to stay.

        Raises:
            ChainError: down, or the contract refuses.
        """

        def answer() -> Any:
            block = max(0, self._w3.eth.block_number - self._confirmations + 1)
            return call.call(block_identifier=block)

        return self._ask(answer)

    def check_call(self, key: ChainKey, call: Any) -> None:
        """See that a transaction of ``key`` would be taken, in the newest block. Nothing is sent.

        Raises:
            ChainError: down; or ``reverted``: the contract would refuse it.
        """
        self._ask(lambda: call.estimate_gas({"from": _shown(key.address)}, "latest"))

    def contract_at(self, address: ChainAddress, abi: list[dict[str, Any]]) -> Any:
        """Somebody else's contract, of which nothing is known but its interface.

        Raises:
            ChainError: down, or there is no contract.
        """
        if not self._ask(lambda: bytes(self._w3.eth.get_code(_shown(address)))):
            raise ChainError(
                f"at {show_address(address)} is no contract",
                reason="no contract",
                check="see that this is the chain on which it stands",
            )
        return self._w3.eth.contract(address=_shown(address), abi=abi)

    def deposited(self, payer: ChainAddress, first: int = 0) -> list[PaymentTerms]:
        """The terms of all payment channels that a wallet has paid into, read from its transactions.

        Args:
            first: the block from which on they are looked for.

        Raises:
            ChainError: down, or the node refuses to look through even few blocks at once.
        """
        event = self.contract("Escrow").events.Deposited
        last = self._ask(lambda: int(self._w3.eth.block_number))
        found: dict[bytes, PaymentTerms] = {}
        span = max(1, last - first + 1)
        while first <= last:
            options = {"from_block": first, "to_block": min(last, first + span - 1)}
            try:
                logs = self._ask(lambda o=options: event.get_logs({"payer": _shown(payer)}, **o))
            except ChainError:
                # Providers bound the blocks of one question, each in its own way and words.
                if span <= LEAST_SPAN:
                    raise
                span = max(LEAST_SPAN, span // 4)
                continue
            first += span
            for entry in logs:
                terms = self._ask(lambda e=entry: self._terms_in(e["transactionHash"], payer))
                if terms is not None:
                    found[terms.channel_id(self.deployment.escrow)] = terms
        return list(found.values())

    def _terms_in(self, transaction: Any, payer: ChainAddress) -> PaymentTerms | None:
        """What a wallet's own transaction gave to ``deposit``: seven words behind four bytes."""
        sent: Any = self._w3.eth.get_transaction(transaction)
        data = bytes(sent["input"])
        if parse_address(sent["from"]) != payer or len(data) != 4 + 7 * WORD:
            return None
        words = [data[at : at + WORD] for at in range(4, len(data), WORD)]
        names = ("payer", "payer_signer", "payee", "payee_signer", "token")
        addresses = {name: one[-ADDRESS:] for name, one in zip(names, words, strict=False)}
        return PaymentTerms(**addresses, delay_s=int.from_bytes(words[5], "big"), salt=words[6])

    def deposit(self, key: ChainKey, terms: PaymentTerms, amount: int) -> Any:
        """Open a payment channel with ``amount`` wei, or add them. Raises as :meth:`transact`."""
        return self.transact(key, self.contract("Escrow").functions.deposit(_tuple(terms)), amount)

    def redeem(self, key: ChainKey, terms: PaymentTerms, voucher: Voucher) -> Any:
        """Have a voucher paid out. Raises as :meth:`transact`."""
        r, s, v = split_signature(voucher.signature)
        arguments = (_tuple(terms), voucher.amount, r.to_bytes(32, "big"), s.to_bytes(32, "big"), v)
        return self.transact(key, self.contract("Escrow").functions.redeem(*arguments))

    def request_close(self, key: ChainKey, terms: PaymentTerms) -> Any:
        """Want back what is left. Raises as :meth:`transact`."""
        return self.transact(key, self.contract("Escrow").functions.request_close(_tuple(terms)))

    def take_back(self, key: ChainKey, terms: PaymentTerms) -> Any:
        """Have what is left, after the delay. Raises as :meth:`transact`; before, ``not yet``."""
        call = self.contract("Escrow").functions.withdraw(_tuple(terms))
        # As the next block would do it: the newest may be old where nothing happens, and not be late enough.
        return self.transact(key, call, at="pending")

    def slash(self, key: ChainKey, evidence: Equivocation) -> Any:
        """Report a node that said two things about one question. Raises as :meth:`transact`."""
        return self.transact(key, self.contract("Registry").functions.slash(*evidence.arguments))

    def anchor(self, key: ChainKey, root: bytes, count: int) -> Any:
        """Put a root into the chain. Raises as :meth:`transact`."""
        return self.transact(key, self.contract("Anchor").functions.anchor(root, count))

    def transact(
        self, key: ChainKey, call: Any, value: int = 0, *, at: Literal["latest", "pending"] = "latest"
    ) -> Any:
        """Send a transaction, and see to it until it stands. Returns its receipt.

        Args:
            at: the block in whose state and time it is tried before it is sent.

        Raises:
            ChainError: ``reverted``, before or after it was sent: nothing has changed. ``poor``: the key has
                too little. ``dear``: it would cost more than is allowed. ``other chain``, ``down``,
                ``nonsense``: nothing was sent. ``refused``: the node has never taken it. ``dropped``: it was
                sent, and may still happen, unless another has taken its place.
        """
        self.check_chain()
        sender = _shown(key.address)
        self._check_funds(key.address, value, value)
        gas = self._ask(lambda: call.estimate_gas({"from": sender, "value": value}, at))
        body: dict[str, Any] = {
            "from": sender,
            "value": value,
            "gas": gas * GAS_MARGIN_PERCENT // 100,
            "chainId": self.deployment.chain_id,
            "nonce": self._ask(lambda: self._w3.eth.get_transaction_count(sender, "pending")),
        }
        fees = self._fees()
        priced = body | {"maxFeePerGas": fees.most, "maxPriorityFeePerGas": fees.tip}
        self._check_cost(body["gas"], fees)
        body = self._ask(lambda: call.build_transaction(priced))
        self._check_funds(key.address, value, value + body["gas"] * fees.most)
        return self._see_through(key, body, fees)

    def _see_through(self, key: ChainKey, body: dict[str, Any], fees: Fees) -> Any:
        now = self._clock()
        highest = self._most_cost // max(1, body["gas"])
        pending = Pending(nonce=body["nonce"], fees=fees, began=now, sent=now, highest=highest)
        signed = [_sign(key, body, fees)]
        action: Action = "send again"
        receipt, looked, away, refusal = None, now, 0, ""
        while True:
            try:
                if action in ("send again", "reprice"):
                    before, pending = pending, replace(pending, taken=True)  # until the node says otherwise
                    refused = self._publish(signed[-1])
                    if refused:
                        pending, refusal = before.refused(self._clock()), refused
                    action = "wait"
                self._sleep(self._poll_s)
                view, receipt = self._look(body["from"], [one.hash for one in signed])
            except ChainError as error:
                # Whatever the node answers instead, it says nothing of what was sent.
                if self._clock() - looked >= DOWN_S:
                    raise _open(signed[-1].hash, error.message) from error
                if not away:
                    log.warning("%s: it is asked again until it does", error.message)
                away += 1
                self._sleep(max(self._poll_s, min(MOST_POLL_S, self._poll_s * 2 ** min(away, 8))))
                continue
            # The time in which the node was away is not the transaction's.
            now, away_s = self._clock(), max(0.0, self._clock() - looked - 2 * self._poll_s)
            pending, looked, away = pending.delayed(away_s).seen(view), now, 0
            action = next_action(pending, view, now, self._confirmations)
            if action == "done":
                return receipt
            if action == "reprice":
                pending = pending.repriced(now)
                signed.append(_sign(key, body, pending.fees))
            _raise_for(action, signed[-1].hash, refusal)

    def _look(self, sender: Any, hashes: list[Any]) -> tuple[TransactionView, Any]:
        """What the node says of a transaction that was sent at these prices."""
        from web3.exceptions import TransactionNotFound  # noqa: PLC0415  an extra

        # First: a transaction that comes into a block while we look would else seem to be another's.
        nonce = self._ask(lambda: int(self._w3.eth.get_transaction_count(sender, "latest")))
        receipt, known = None, False
        for one in hashes:
            try:
                mined = self._ask(lambda one=one: self._is_mined(one))
                known = True
                if mined:
                    receipt = self._ask(lambda one=one: self._w3.eth.get_transaction_receipt(one))
                    break
            except TransactionNotFound:
                continue
        head = self._ask(lambda: int(self._w3.eth.block_number))
        block, status = self._ask(lambda: _outcome(receipt))
        well = status == 1
        return TransactionView(known=known, block=block, well=well, head=head, nonce=nonce), receipt

    def _is_mined(self, transaction: Any) -> bool:
        found: Any = self._w3.eth.get_transaction(transaction)
        return found["blockNumber"] is not None

    def _publish(self, signed: Any) -> str:
        """Send it. Returns why the node did not take it, or nothing."""
        try:
            self._ask(lambda: self._w3.eth.send_raw_transaction(signed.raw_transaction))
        except ChainError as error:
            if error.reason in ("down", "nonsense"):
                raise
            # It may have it already, or one of this number: looking shows which.
            log.info("the chain's node did not take a transaction: %s", error.message)
            return error.message
        return ""

    def _fees(self) -> Fees:
        base = self._ask(lambda: int(self._newest_block().get("baseFeePerGas", 0)))
        tip = self._ask(lambda: int(self._w3.eth.max_priority_fee))
        return Fees(tip, 2 * base + tip)

    def _check_cost(self, gas: int, fees: Fees) -> None:
        if gas * fees.most > self._most_cost:
            raise ChainError(
                f"{gas} units of gas may cost {fees.most} wei each, {gas * fees.most} in all;"
                f" {self._most_cost} is the most for a transaction",
                reason="dear",
                check="wait until the chain is cheaper, see that its node says the truth, or allow more with"
                " --most-cost",
            )

    def _newest_block(self) -> Any:
        return self._w3.eth.get_block("latest")

    def _check_funds(self, address: ChainAddress, value: int, needed: int) -> None:
        if self.balance(address) < needed:
            raise ChainError(
                f"{show_address(address)} has too little for {value} wei and what a transaction costs",
                reason="poor",
                check="send it some coins of the test chain",
                next_command="shoal wallet show",
            )

    def check_chain(self) -> None:
        """See that the node is of our chain.

        Raises:
            ChainError: down, or other chain.
        """
        found = self._ask(lambda: self._w3.eth.chain_id)
        if found != self.deployment.chain_id:
            raise ChainError(
                f"the node at {self.deployment.node} is of chain {found}, not {self.deployment.chain_id}",
                reason="other chain",
                check="correct url or chain_id in chain.toml",
            )

    def _check_code(self, name: ContractName, address: ChainAddress) -> None:
        code = self._ask(lambda: self._w3.eth.get_code(_shown(address)))
        if "0x" + bytes(code).hex() != artefact(name).runtime:
            raise ChainError(
                f"at {show_address(address)} is no {name} as this version of Shoal has it",
                reason="no contract",
                check="correct the address in chain.toml, or deploy the contracts",
                next_command="shoal wallet deploy --help",
            )

    def estimate(self, transaction: dict[str, Any], at: str) -> int:
        """The gas that a transaction would take in the state of a block.

        Raises:
            ChainError: down, or it would fail.
        """
        return self._ask(lambda: int(self._w3.eth.estimate_gas(cast(Any, transaction), cast(Any, at))))

    def contract(self, name: ContractName) -> Any:
        """One of ours."""
        return self._w3.eth.contract(address=_shown(self.deployment.contracts[name]), abi=artefact(name).abi)

    def _ask(self, question: Callable[[], Answered]) -> Answered:
        return ask(question, self.deployment.node)


def deploy(url: str, chain_id: int, key: ChainKey, provider: Any = None, **options: Any) -> Deployment:
    """Put our contracts on a test chain, and see that what stands there is what was compiled.

    Raises:
        UsageError: it is no test chain, or ``url`` no address.
        ChainError: as :meth:`ChainClient.transact`, or ``no contract``.
    """
    check_test_chain(chain_id)
    check_url(url)
    nobody = ChainAddress(bytes(20))
    client = ChainClient(Deployment(url, chain_id, dict.fromkeys(NAMES, nobody)), provider, **options)
    found: dict[ContractName, ChainAddress] = {}
    for name in NAMES:
        made = connect(url, provider).eth.contract(abi=artefact(name).abi, bytecode=artefact(name).creation)
        receipt = client.transact(key, made.constructor())
        found[name] = parse_address(receipt["contractAddress"])
    done = ChainClient(Deployment(url, chain_id, found), provider)
    done.check()
    return done.deployment


def _sign(key: ChainKey, body: dict[str, Any], fees: Fees) -> Any:
    with recursion_limit_kept():
        from eth_account import Account  # noqa: PLC0415  an extra

    priced = body | {"maxFeePerGas": fees.most, "maxPriorityFeePerGas": fees.tip}
    return Account.sign_transaction(priced, key.secret)


def _outcome(receipt: Any) -> tuple[int | None, int]:
    """The block of a receipt, and whether all went well there (1)."""
    return (int(receipt["blockNumber"]), int(receipt["status"])) if receipt is not None else (None, 1)


def _raise_for(action: Action, sent: bytes, refusal: str) -> None:
    if action == "reverted":
        message = "the contract has refused the transaction after it was sent: nothing but its gas is lost"
        raise ChainError(message, reason="reverted")
    if action == "replaced":
        message = f"another transaction of this key has taken the place of {sent.hex()}"
        raise ChainError(message, reason="dropped", check="see that no other program uses this key")
    if action == "refused":
        raise ChainError(
            f"the transaction was not taken once, and nothing has changed. The last time: {refusal}",
            reason="refused",
            check="see what the node writes into its log",
        )
    if action == "give up":
        raise _open(sent, refusal)


def _open(sent: bytes, why: str) -> ChainError:
    """It is not known what becomes of a transaction."""
    message = f"the transaction {sent.hex()} does not stand in the chain yet, and may still happen"
    message += f" ({why})" if why else ""
    return ChainError(
        message, reason="dropped", check="look again later", next_command="shoal wallet channels"
    )


def _shown(address: bytes) -> Any:
    return show_address(address)


def _tuple(terms: PaymentTerms) -> tuple[Any, ...]:
    addresses = (terms.payer, terms.payer_signer, terms.payee, terms.payee_signer, terms.token)
    return (*map(show_address, addresses), terms.delay_s, terms.salt)
