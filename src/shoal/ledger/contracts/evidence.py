"""What a node's delegate counter-signs of its receipts, so that a contract can see that it said two things.

A hop signs each question once: a window of a session, for a nonce, in an opening of its own
(:mod:`shoal.trust.receipt`). Two contents under one question, both counter-signed, are proof against it, and
the contract need not know what receipts are. Nobody can make an honest node's: an opening is new each time.
"""

from __future__ import annotations

from dataclasses import dataclass

from shoal.errors import UsageError
from shoal.ledger.vouchers.keys import ChainKey, recover
from shoal.ledger.vouchers.typed_data import ChainAddress, SigningDomain, hash_typed, keccak256, word
from shoal.trust.receipt import Receipt, contradict

DOMAIN_NAME = "Shoal"
_RECEIPT_TYPE = keccak256(b"Receipt(bytes32 question,bytes32 content)")


def registry_domain(chain_id: int, contract: bytes) -> SigningDomain:
    """Where counter-signatures for a registry hold."""
    return SigningDomain(chain_id, contract, DOMAIN_NAME)


def question_of(receipt: Receipt) -> bytes:
    """What the receipt answers, as the 32 bytes that no honest node answers twice."""
    work = receipt.work
    return keccak256(work.session + work.nonce + work.opening + word(receipt.window))


def countersign(key: ChainKey, domain: SigningDomain, receipt: Receipt) -> bytes:
    """The delegate's signature of a receipt."""
    return key.sign(_digest(domain, question_of(receipt), receipt.hash))


def _digest(domain: SigningDomain, question: bytes, content: bytes) -> bytes:
    return hash_typed(domain, _RECEIPT_TYPE, question + content)


@dataclass(frozen=True, slots=True)
class Equivocation:
    """Two things that one delegate said about one question: the arguments of ``Registry.slash``."""

    delegate: ChainAddress
    question: bytes
    contents: tuple[bytes, bytes]
    signatures: tuple[bytes, bytes]

    @property
    def arguments(self) -> tuple[bytes, bytes, bytes, list[int], list[int]]:
        """As the contract takes them."""
        a, b = map(split_signature, self.signatures)
        return (self.question, *self.contents, list(a), list(b))


def split_signature(signature: bytes) -> tuple[int, int, int]:
    """r, s and v."""
    return int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big"), signature[64]


def find_equivocation(
    domain: SigningDomain, one: Receipt, other: Receipt, signatures: tuple[bytes, bytes]
) -> Equivocation:
    """What two counter-signed receipts prove.

    Raises:
        UsageError: nothing: they are equal, or not of one delegate, or not signed as they stand here.
        RemoteProtocolError: they do not answer the same question.
    """
    if not contradict(one, other):
        raise UsageError("the two receipts say the same: that is no evidence", check="give two that differ")
    question = question_of(one)
    contents = (one.hash, other.hash)
    first, second = (
        recover(_digest(domain, question, content), signature)
        for content, signature in zip(contents, signatures, strict=True)
    )
    if first is None or first != second:
        raise UsageError(
            "the two receipts were not counter-signed by one delegate for this registry",
            check="compare the chain and the registry of the evidence with those in the configuration",
        )
    return Equivocation(first, question, contents, signatures)
