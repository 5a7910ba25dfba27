"""What the operator asks for answers: the file that the setting ``payment`` names."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

from shoal.errors import UsageError
from shoal.ledger.chain.deployment import check_test_chain, check_url
from shoal.ledger.vouchers.typed_data import ChainAddress, parse_address
from shoal.ledger.vouchers.voucher import MAX_AMOUNT, MAX_DELAY_S, MIN_DELAY_S
from shoal.option_values import LONGEST_AMOUNT, read_amount
from shoal.toml_file import read_toml

MOST_TOKENS = 4096
LEAST_REQUESTS = 10
"""What a deposit pays for at least, where the file names no other: each costs the gateway a transaction."""
DELAY_S = 86400
_NEEDED: dict[str, type] = {"url": str, "chain_id": int, "token": str, "payee": str, "price": str}
_ALLOWED: dict[str, type] = {"most_tokens": int, "least_deposit": str, "delay_s": int, "password_file": str}


@dataclass(frozen=True, slots=True)
class PaymentTermsFile:
    """What it says. Amounts are in whole tokens, as people write them."""

    url: str
    """Where a node of the chain answers."""
    chain_id: int
    token: ChainAddress
    payee: ChainAddress
    price: Decimal
    """Of a million tokens of text, prompts and answers alike."""
    password_file: Path
    """Of the wallet, which claims, and pays for the gas of it."""
    most_tokens: int = MOST_TOKENS
    """Of text, in one request with its answer."""
    least_deposit: Decimal | None = None
    delay_s: int = DELAY_S


def read_terms(path: Path) -> PaymentTermsFile:
    """What a file says.

    Raises:
        UsageError: it cannot be read, lacks something, or says what cannot be; or the chain is no test chain.
    """
    values = _values(path)
    check_test_chain(values["chain_id"])
    check_url(values["url"])
    most, delay = values.get("most_tokens", MOST_TOKENS), values.get("delay_s", DELAY_S)
    if not 1 <= most <= 1 << 22:
        raise _wrong(path, "most_tokens", "a number of tokens from 1 to 4194304")
    if not MIN_DELAY_S <= delay <= MAX_DELAY_S:
        raise _wrong(path, "delay_s", f"a number of seconds from {MIN_DELAY_S} to {MAX_DELAY_S}")
    least = values.get("least_deposit")
    return PaymentTermsFile(
        url=values["url"],
        chain_id=values["chain_id"],
        token=parse_address(values["token"]),
        payee=parse_address(values["payee"]),
        price=_amount(path, "price", values["price"]),
        password_file=path.parent / Path(values["password_file"]).expanduser(),
        most_tokens=most,
        least_deposit=None if least is None else _amount(path, "least_deposit", least),
        delay_s=delay,
    )


def smallest_units(amount: Decimal, decimals: int) -> int:
    """Whole tokens in their smallest unit, a begun one counted as whole."""
    with localcontext(prec=LONGEST_AMOUNT):
        scaled = amount.scaleb(decimals)
        whole = int(scaled)
        return whole + (whole < scaled)


def _values(path: Path) -> dict[str, Any]:
    values = read_toml(path)
    if values is None:
        raise UsageError(
            f"there is no {path}",
            check="name a file with the terms of payment; docs/ledger.md says how it is written",
            next_command="shoal gateway --payment FILE",
        )
    known = _NEEDED | _ALLOWED
    if unknown := sorted(values.keys() - known.keys()):
        raise UsageError(
            f"{path} has an unknown name {unknown[0]!r}", check=f"use one of: {', '.join(known)}"
        )
    for name in (*_NEEDED, "password_file"):
        if name not in values:
            raise UsageError(f"{path} needs {name}", check="add it; docs/ledger.md says what it is")
    for name, value in values.items():
        if type(value) is not known[name]:
            kind = "text in quotation marks" if known[name] is str else "a whole number"
            raise _wrong(path, name, kind)
    return values


def _amount(path: Path, name: str, text: str) -> Decimal:
    value = read_amount(text)
    if not Decimal(10) ** -36 <= value <= MAX_AMOUNT:
        raise _wrong(path, name, 'an amount above 0 in whole tokens, for example "0.5"')
    return value


def _wrong(path: Path, name: str, needed: str) -> UsageError:
    return UsageError(f"{path}: {name} needs {needed}", check="correct the file")
