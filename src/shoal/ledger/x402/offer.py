"""What is asked for a request, and what a client is told of its payment channel. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shoal.errors import UsageError
from shoal.ledger.vouchers.payee import MICRO, PayeeAccount
from shoal.ledger.vouchers.typed_data import ChainAddress, SigningDomain, parse_address, show_address
from shoal.ledger.vouchers.voucher import MAX_AMOUNT, PaymentTerms, escrow_domain
from shoal.ledger.x402.messages import SCHEME, VERSION, Accepted
from shoal.ledger.x402.refusals import OTHER_OFFER, PaymentNotTaken

SETTLEMENT = parse_address("0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003")
"""x402's contract, the same on every chain: its clients sign for no other."""
COLLECTOR = parse_address("0x4020806089470a89826cB9fB1f4059150b550004")
"""Of x402, too: it takes a payer's tokens by ERC-3009."""
AUTHORIZATION_S = 600
"""How long a client's permission to take its tokens holds: a deposit is seen through in that time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayOffer:
    """On what terms requests are answered. Amounts are in the token's smallest unit.

    Raises:
        UsageError: a request, or a deposit, costs more than a voucher can say.
    """

    chain_id: int
    token: ChainAddress
    token_name: str
    token_version: str
    """Both as the token's own signatures have them."""
    payee: ChainAddress
    signer: ChainAddress
    """Who claims for the payee, and gives back: the gateway's own key."""
    price: int
    """Of a million tokens, of prompts and answers alike."""
    most_tokens: int
    """Of one request, prompt and answer together."""
    least_deposit: int
    delay_s: int
    """How long the payee can still claim once the payer wants its money back."""

    def __post_init__(self) -> None:
        if max(self.ceiling, self.least_deposit) > MAX_AMOUNT:
            raise UsageError(
                f"a request may cost {self.ceiling} of the token's smallest unit, and the least deposit is"
                f" {self.least_deposit}: no voucher has room for more than {MAX_AMOUNT}",
                check="lower price, most_tokens or least_deposit",
            )

    @property
    def network(self) -> str:
        """As x402 names chains (CAIP-2)."""
        return f"eip155:{self.chain_id}"

    @property
    def domain(self) -> SigningDomain:
        """Where vouchers hold."""
        return escrow_domain(self.chain_id, SETTLEMENT)

    @property
    def ceiling_micro(self) -> int:
        """What a request costs at most, in millionths."""
        return self.most_tokens * self.price

    @property
    def ceiling(self) -> int:
        """The same in whole units: what each voucher has room for."""
        return -(-self.ceiling_micro // MICRO)

    def requirements(self, account: PayeeAccount | None = None) -> dict[str, Any]:
        """What a client must pay, in x402's words.

        Args:
            account: the payment channel, where the client is to read anew what it was charged.
        """
        extra: dict[str, Any] = {
            "name": self.token_name,
            "version": self.token_version,
            "assetTransferMethod": "eip3009",
            "receiverAuthorizer": show_address(self.signer),
            "withdrawDelay": self.delay_s,
            "minDeposit": str(self.least_deposit),
        }
        if account is not None and account.voucher is not None:
            extra["channelState"] = channel_state(account)
            extra["voucherState"] = {
                "signedMaxClaimable": str(account.paid),
                "signature": "0x" + account.voucher.signature.hex(),
            }
        return {
            "scheme": SCHEME,
            "network": self.network,
            "asset": show_address(self.token),
            "amount": str(self.ceiling),
            "payTo": show_address(self.payee),
            "maxTimeoutSeconds": AUTHORIZATION_S,
            "extra": extra,
        }

    def required(self, url: str, error: str, account: PayeeAccount | None = None) -> dict[str, Any]:
        """What ``PAYMENT-REQUIRED`` carries.

        Args:
            url: of what is asked for.
            error: one of x402's words, by which its clients know what to do.
        """
        return {
            "x402Version": VERSION,
            "error": error,
            "resource": {"url": url, "description": "Answers of language models, paid by the token"},
            "accepts": [self.requirements(account)],
        }

    def check_accepted(self, accepted: Accepted) -> None:
        """See that the client agreed to this offer, and not to an older one.

        Raises:
            PaymentNotTaken: it did not.
        """
        named = (accepted.network, int(accepted.amount))
        addresses = (accepted.asset.lower(), accepted.pay_to.lower())
        ours = (show_address(self.token).lower(), show_address(self.payee).lower())
        if named != (self.network, self.ceiling) or addresses != ours:
            raise PaymentNotTaken(
                "this payment is for another offer than the gateway makes now",
                reason=OTHER_OFFER,
                check="ask again without a payment for what it costs now",
            )

    def check_terms(self, terms: PaymentTerms) -> None:
        """See that a payment channel is one to us.

        Raises:
            PaymentNotTaken: it is not.
        """
        found = (terms.payee, terms.payee_signer, terms.token, terms.delay_s)
        if found != (self.payee, self.signer, self.token, self.delay_s):
            raise PaymentNotTaken(
                "this payment channel has other terms than the gateway offers",
                reason=OTHER_OFFER,
                check="ask again without a payment, and open another payment channel",
            )


def channel_state(account: PayeeAccount) -> dict[str, Any]:
    """A payment channel in x402's words."""
    return {
        "channelId": "0x" + account.channel_id.hex(),
        "balance": str(account.deposit),
        "totalClaimed": str(account.redeemed),
        "withdrawRequestedAt": int(account.closes_at - account.terms.delay_s) if account.closes_at else 0,
        "refundNonce": "0",
        "chargedCumulativeAmount": str(account.told),
    }


def response(
    offer: GatewayOffer, account: PayeeAccount, charged: int, transaction: str = ""
) -> dict[str, Any]:
    """What ``PAYMENT-RESPONSE`` carries.

    Args:
        charged: what the client counts as paid from now on, beside what it did.
        transaction: that of a deposit or a refund, or nothing.
    """
    return {
        "success": True,
        "payer": show_address(account.terms.payer),
        "transaction": transaction,
        "network": offer.network,
        "amount": str(charged),
        "extra": {"chargedAmount": str(charged), "channelState": channel_state(account)},
    }
