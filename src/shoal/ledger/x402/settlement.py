"""x402's contract on a chain: payments in, claims, what is left given back. To be called from a thread.

It is not ours, and its bytes are not compared with any. That it names a payment channel as we do shows that
it is a contract of this domain, on this chain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shoal.errors import ChainError
from shoal.ledger.chain.client import ChainClient, EscrowState
from shoal.ledger.vouchers.keys import ChainKey
from shoal.ledger.vouchers.payee import PayeeAccount
from shoal.ledger.vouchers.typed_data import ChainAddress, show_address
from shoal.ledger.vouchers.voucher import MIN_DELAY_S, PaymentTerms, escrow_domain
from shoal.ledger.x402.messages import TokenAuthorization
from shoal.ledger.x402.offer import COLLECTOR, SETTLEMENT

MAX_NAME = 64


def _function(name: str, inputs: list[Any], outputs: list[Any] | None = None) -> dict[str, Any]:
    kind = "nonpayable" if outputs is None else "view"
    return {
        "type": "function",
        "name": name,
        "inputs": inputs,
        "outputs": outputs or [],
        "stateMutability": kind,
    }


def _fields(*fields: str) -> list[Any]:
    """Of ``type name`` each."""
    return [dict(zip(("type", "name"), field.split(), strict=True)) for field in fields]


_CONFIG = {
    "name": "config",
    "type": "tuple",
    "components": _fields(
        "address payer",
        "address payerAuthorizer",
        "address receiver",
        "address receiverAuthorizer",
        "address token",
        "uint40 withdrawDelay",
        "bytes32 salt",
    ),
}
_VOUCHER = {
    "name": "voucher",
    "type": "tuple",
    "components": [_CONFIG | {"name": "channel"}, *_fields("uint128 maxClaimableAmount")],
}
_CLAIMS = {
    "name": "voucherClaims",
    "type": "tuple[]",
    "components": [_VOUCHER, *_fields("bytes signature", "uint128 totalClaimed")],
}
_ID = _fields("bytes32 channelId")
_ABI = [
    _function("getChannelId", [_CONFIG], _fields("bytes32 id")),
    _function("channels", _ID, _fields("uint128 balance", "uint128 totalClaimed")),
    _function("pendingWithdrawals", _ID, _fields("uint128 amount", "uint40 initiatedAt")),
    _function("deposit", [_CONFIG, *_fields("uint128 amount", "address collector", "bytes collectorData")]),
    _function("claim", [_CLAIMS]),
    _function("settle", _fields("address receiver", "address token")),
    _function("refund", [_CONFIG, *_fields("uint128 amount")]),
]
_TOKEN_ABI = [
    _function("name", [], _fields("string name")),
    _function("version", [], _fields("string version")),
    _function("decimals", [], _fields("uint8 decimals")),
]


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """What a token says of itself."""

    name: str
    version: str
    """Of its signatures' domain (EIP-712)."""
    decimals: int


class SettlementClient:
    """Asks x402's contract, and sends to it."""

    def __init__(self, chain: ChainClient) -> None:
        self.chain = chain

    def token_facts(self, token: ChainAddress) -> TokenFacts:
        """What the token's signatures are bound to.

        Raises:
            ChainError: down, other chain, no contract; or ``reverted``, where it is no token with
                authorizations.
        """
        self.chain.check_chain()
        functions = self.chain.contract_at(token, _TOKEN_ABI).functions
        name, version = str(self.chain.read(functions.name())), str(self.chain.read(functions.version()))
        decimals = int(self.chain.read(functions.decimals()))
        if not 0 < len(name) <= MAX_NAME or not 0 < len(version) <= MAX_NAME or decimals > 36:
            raise ChainError(f"{show_address(token)} says of itself what no token says", reason="no contract")
        return TokenFacts(name, version, decimals)

    def check(self, token: ChainAddress) -> None:
        """See that x402's contracts are on this chain, and mean by a payment channel what we mean.

        Raises:
            ChainError: down, other chain, or no contract.
        """
        self.chain.check_chain()
        self.chain.contract_at(COLLECTOR, [])
        terms = PaymentTerms(
            payer=COLLECTOR,
            payer_signer=COLLECTOR,
            payee=SETTLEMENT,
            payee_signer=SETTLEMENT,
            token=token,
            delay_s=MIN_DELAY_S,
        )
        found = bytes(self.chain.read(self._functions.getChannelId(_tuple(terms))))
        if found != terms.channel_id(escrow_domain(self.chain.deployment.chain_id, SETTLEMENT)):
            raise ChainError(
                f"what stands at {show_address(SETTLEMENT)} is not x402's contract as its clients know it",
                reason="no contract",
                check="see that this is a chain on which x402 has deployed batch-settlement",
            )

    def state(self, terms: PaymentTerms, channel_id: bytes) -> EscrowState:
        """What is in escrow, in the newest block that is believed to stay.

        Raises:
            ChainError: down.
        """
        deposit, claimed = self.chain.read(self._functions.channels(channel_id))
        _, since = self.chain.read(self._functions.pendingWithdrawals(channel_id))
        return EscrowState(int(deposit), int(claimed), int(since) + terms.delay_s if since else None)

    def deposit(self, key: ChainKey, terms: PaymentTerms, amount: int, by: TokenAuthorization) -> str:
        """Put a payer's tokens into escrow, as it has allowed. Returns the transaction.

        Raises:
            ChainError: as :meth:`ChainClient.transact`.
        """
        return _hash(self.chain.transact(key, self._deposit(terms, amount, by)))

    def check_deposit(self, key: ChainKey, terms: PaymentTerms, amount: int, by: TokenAuthorization) -> None:
        """See that the payer has the tokens and has allowed it. Nothing is sent, and no gas is paid.

        Raises:
            ChainError: as :meth:`ChainClient.check_call`.
        """
        self.chain.check_call(key, self._deposit(terms, amount, by))

    def claim(self, key: ChainKey, account: PayeeAccount) -> str:
        """Have what was served counted as the payee's, and paid out to it. Returns the last transaction.

        Raises:
            ValueError: there is no voucher to claim by.
            ChainError: as :meth:`ChainClient.transact`.
        """
        if account.voucher is None:
            raise ValueError("nothing was paid")
        terms, voucher = account.terms, account.voucher
        claimed = min(account.owed, voucher.amount)
        one = ((_tuple(terms), voucher.amount), voucher.signature, claimed)
        self.chain.transact(key, self._functions.claim([one]))
        return self.settle(key, terms)

    def settle(self, key: ChainKey, terms: PaymentTerms) -> str:
        """Have all that was claimed for a payee paid out to it. Raises as :meth:`ChainClient.transact`."""
        call = self._functions.settle(show_address(terms.payee), show_address(terms.token))
        return _hash(self.chain.transact(key, call))

    def give_back(self, key: ChainKey, terms: PaymentTerms, amount: int) -> str:
        """Give the payer what is left, at most ``amount``. Raises as :meth:`ChainClient.transact`."""
        return _hash(self.chain.transact(key, self._functions.refund(_tuple(terms), amount)))

    def _deposit(self, terms: PaymentTerms, amount: int, by: TokenAuthorization) -> Any:
        collector = show_address(COLLECTOR)
        return self._functions.deposit(_tuple(terms), amount, collector, by.collector_data)

    @property
    def _functions(self) -> Any:
        return self.chain.contract_at(SETTLEMENT, _ABI).functions


def _tuple(terms: PaymentTerms) -> tuple[Any, ...]:
    addresses = (terms.payer, terms.payer_signer, terms.payee, terms.payee_signer, terms.token)
    return (*map(show_address, addresses), terms.delay_s, terms.salt)


def _hash(receipt: Any) -> str:
    return "0x" + bytes(receipt["transactionHash"]).hex()
