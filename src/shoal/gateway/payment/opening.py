"""A gateway that is paid, from its settings: the chain is looked at before anybody is asked for money."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from shoal.config import Settings
from shoal.errors import UsageError
from shoal.gateway.payment.door import PaymentDoor
from shoal.gateway.payment.terms import LEAST_REQUESTS, PaymentTermsFile, read_terms, smallest_units
from shoal.gateway.payment.till import Till
from shoal.ledger.chain.client import ChainClient
from shoal.ledger.chain.deployment import Deployment
from shoal.ledger.contracts.artefacts import NAMES
from shoal.ledger.vouchers.book import PaymentBook
from shoal.ledger.vouchers.keys import ChainKey
from shoal.ledger.vouchers.payee import PayeeAccount
from shoal.ledger.vouchers.typed_data import ChainAddress
from shoal.ledger.wallet import open_wallet, read_password
from shoal.ledger.x402.offer import GatewayOffer
from shoal.ledger.x402.settlement import SettlementClient, TokenFacts


def paid_door(settings: Settings) -> PaymentDoor | None:
    """What takes payments for answers, or ``None`` where none are asked. It waits: call it on a thread.

    Raises:
        UsageError: the file of the terms says what cannot be, or several gateways share a database.
        NotAllowed, BadLedgerFile: the wallet cannot be opened.
        ChainError: the chain does not answer, is another one, or x402's contracts are not there.
        IncompatibleLibrary: the extra ``ledger`` is not installed.
    """
    if not settings.payment:
        return None
    if settings.database:
        raise UsageError(
            "gateways that share a database cannot be paid: each would take the same voucher",
            check="leave out the setting database or the setting payment",
        )
    terms = read_terms(Path(settings.payment).expanduser())
    key = open_wallet(settings.paths.wallet, read_password(terms.password_file))
    nowhere = dict.fromkeys(NAMES, ChainAddress(bytes(20)))  # none of our own contracts is used
    client = SettlementClient(ChainClient(Deployment(terms.url, terms.chain_id, nowhere)))
    client.check(terms.token)
    offer = offer_of(terms, client.token_facts(terms.token), key)
    return PaymentDoor(Till(offer, client, key, accounts(settings.paths.payments)))


def accounts(payments: Path) -> PaymentBook[PayeeAccount]:
    """Where what was paid is kept, beside the wallet's payment channels, which are at another contract."""
    return PaymentBook(payments / "x402", PayeeAccount)


def offer_of(terms: PaymentTermsFile, token: TokenFacts, key: ChainKey) -> GatewayOffer:
    """What is asked for, in the token's smallest unit.

    Raises:
        UsageError: a request, or a deposit, costs more than a voucher can say.
    """
    offer = GatewayOffer(
        chain_id=terms.chain_id,
        token=terms.token,
        token_name=token.name,
        token_version=token.version,
        payee=terms.payee,
        signer=key.address,
        price=smallest_units(terms.price, token.decimals),
        most_tokens=terms.most_tokens,
        least_deposit=0,
        delay_s=terms.delay_s,
    )
    least = LEAST_REQUESTS * offer.ceiling
    if terms.least_deposit is not None:
        least = smallest_units(terms.least_deposit, token.decimals)
    return replace(offer, least_deposit=max(least, offer.ceiling))
