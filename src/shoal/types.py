"""The nouns of Shoal. Every word here has one meaning, in code, on the wire, in the CLI and in the docs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NewType, cast, get_args

PeerId = NewType("PeerId", str)
"""A libp2p peer id in its base58 form, derived from the peer's public key."""

Digest = NewType("Digest", str)
"""``sha256:<64 hex digits>`` of a model's manifest: its config, its text files and every tensor's hash."""

AdapterDigest = NewType("AdapterDigest", str)
"""``sha256:<64 hex digits>`` of all that an adapter adds to a model (:mod:`shoal.models.adapters`)."""

SHA256 = re.compile("[0-9a-f]{64}", re.ASCII)
DIGEST = re.compile("sha256:[0-9a-f]{64}", re.ASCII)
"""How a :class:`Digest` and an :class:`AdapterDigest` are written."""

SessionId = NewType("SessionId", bytes)
"""16 random bytes chosen by the client. To know it is not enough: a hop also checks who asks."""

ModelKind = Literal["language", "graph"]
"""A language model, of which the blocks keep a session's KV; or a graph, of which the segments keep
nothing."""

ArrayType = Literal[
    "float32",
    "float64",
    "float16",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
]
"""Elements of a graph's tensors, as numpy names them."""

ARRAY_BYTES: dict[ArrayType, int] = {
    "float32": 4,
    "float64": 8,
    "float16": 2,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "bool": 1,
}

DType = Literal["float32", "bfloat16", "float16"]
"""What torch loads a checkpoint's tensors in."""

Format = Literal["fp32", "published", "bf16", "int8", "w8a8", "int4"]
"""How a node holds the weights of its linear layers, the most exact first. A route has one format.

``published`` keeps a quantised model's integers, scales and minima as they are in its files. ``w8a8`` has the
weights of ``int8``, and rounds what they are multiplied with to 8 bits, too.
"""

WEIGHT_BYTES: dict[Format, float] = {
    "fp32": 4,
    "published": 0.5 + 4 / 32,
    "bf16": 2,
    "int8": 1,
    "w8a8": 1,
    "int4": 0.5 + 2 / 32,
}
"""Bytes of a weight; int4 has a float16 scale for each 32. Those of int8 and w8a8, one for each row, are not
in it. As published a weight takes what its type needs: this is Q4_1's, where the files are not at hand."""

Codec = Literal["float32", "bfloat16", "int8", "int6"]
"""How hidden states are encoded for one hop, the most exact first. In memory they are float32 everywhere."""

Kv = Literal["auto", "int8"]
"""How keys and values are kept: as the span computes them, or as 8-bit integers."""

Exactness = Literal["rows", "batch", "modules", "torch", "ranks", "fast", "any"]
"""On what the bits of a span's results depend, beside what goes in.

- ``rows``: on nothing. Our kernels with integer weights: a row has its bits on every machine, in any company.
- ``batch``: on how many rows run together. Our kernels with float weights; else the same on every machine.
- ``modules``: on the machine and its torch as well. A family's own modules.
- ``torch``: the same, Llama's shape by torch on an accelerator or the CPU.
- ``ranks``: on the number of processes that add up their parts, too.
- ``fast``: on how a graph is cut, too: each part is optimised by itself. Never mixed with any other.
- ``any``: of a session alone: its hops need not be alike in this.
"""

Kernels = Literal["auto", "torch"]
"""What computes models of Llama's shape on the CPU: our C kernels where they are built, or torch."""

ProtectionLevel = Literal["fast", "audited", "proved", "consensus", "attested"]
"""How well an answer is protected from hops that compute something else (:mod:`shoal.client.audits`,
:mod:`shoal.client.attestation`)."""
PROTECTION_LEVELS: tuple[ProtectionLevel, ...] = get_args(ProtectionLevel)
"""All that there are, the weakest first."""


def protection_level(name: str | None) -> ProtectionLevel | None:
    """The level of this name, if there is one."""
    for level in PROTECTION_LEVELS:
        if name == level:
            return level
    return None


YieldMode = Literal["off", "share", "pause"]
"""What a node does while its machine is used for something else: nothing, compute less, or pause."""

TeeKind = Literal["tdx", "sgx", "snp", "nitro"]
"""Hardware that keeps what runs on it from the machine's owner, and signs what it is: Intel TDX and SGX, AMD
SEV-SNP, AWS Nitro enclaves."""

CarrierName = Literal["direct", "libp2p-stream", "relayed", "iroh", "memory"]
"""How a channel reaches its peer."""

NatKind = Literal["none", "cone", "symmetric", "unknown"]
"""How a router maps our port: not at all, to the same address whoever is dialled (endpoint-independent, RFC
4787), or to another for each; ``unknown`` until two observers have told."""

Way = Literal["lan", "public", "mapped", "reversed", "punched", "relayed", "iroh", "none"]
"""Which way leads to a peer: a network that both are on, its public address, an address that its router maps
to it, a connection that it makes to us, one that both make at once, a relay, iroh, or none."""


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Blocks ``[start, end)`` of a model."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"a span needs 0 <= start < end, not {self.start}:{self.end}")

    def __len__(self) -> int:
        return self.end - self.start

    def __contains__(self, block: object) -> bool:
        return isinstance(block, int) and self.start <= block < self.end

    def __str__(self) -> str:
        return f"{self.start}:{self.end}"

    @classmethod
    def parse(cls, text: str) -> Span:
        """Read ``"0:10"``.

        Raises:
            ValueError: the text is not ``START:END`` with ``0 <= START < END``.
        """
        start, colon, end = text.partition(":")
        if not colon or not start.strip().isdecimal() or not end.strip().isdecimal():
            raise ValueError(f"a span is written START:END, for example 0:10, not {text!r}")
        return cls(int(start), int(end))


@dataclass(frozen=True, slots=True)
class PrivateEnds:
    """How many blocks of a model its client runs itself, beside the embedding and the head."""

    first: int = 0
    last: int = 0

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.first or self.last)

    def __str__(self) -> str:
        return f"{self.first}:{self.last}"

    @classmethod
    def parse(cls, text: str) -> PrivateEnds:
        """Read ``"2:2"``.

        Raises:
            ValueError: the text is not ``FIRST:LAST``.
        """
        first, colon, last = text.partition(":")
        if not colon or not first.strip().isdecimal() or not last.strip().isdecimal():
            raise ValueError(f"private ends are written FIRST:LAST, for example 2:2, not {text!r}")
        return cls(int(first), int(last))

    def spans(self, n_blocks: int) -> list[Span]:
        """The client's own blocks of a model of ``n_blocks``, which must be more than they are."""
        found = [(0, self.first), (n_blocks - self.last, n_blocks)]
        return [Span(start, end) for start, end in found if start < end]


NUMERICS_VERSION = "n1"
"""Of the order of sums, the tables and the roundings of our kernels: one more where any bit changes."""
NUMERICS_PATTERN = r"^n[0-9]{1,4}/[a-z0-9]{1,16}/[a-z0-9]{1,16}/[a-z]{1,16}$"


@dataclass(frozen=True, slots=True)
class Numerics:
    """How a span is computed, as far as bits depend on it. Hops of one session have the same."""

    format: Format
    kv: Kv
    bits: Exactness
    version: str = NUMERICS_VERSION

    def __str__(self) -> str:
        return f"{self.version}/{self.format}/{self.kv}/{self.bits}"

    @classmethod
    def parse(cls, text: str) -> Numerics:
        """Read ``"n1/int8/auto/rows"``.

        Raises:
            ValueError: it is no numerics that we know.
        """
        match text.split("/"):
            case [version, format, kv, bits] if (
                version == NUMERICS_VERSION
                and format in get_args(Format)
                and kv in get_args(Kv)
                and bits in get_args(Exactness)
            ):
                return cls(cast("Format", format), cast("Kv", kv), cast("Exactness", bits))
            case _:
                raise ValueError(f"numerics are written {NUMERICS_VERSION}/FORMAT/KV/BITS, not {text!r}")

    @property
    def loose(self) -> Numerics:
        """The same without a promise of bits: for sessions over hops that compute by different means. What is
        fast stays that: it shares no session with others."""
        return self if self.bits == "fast" else replace(self, bits="any")

    @property
    def exact(self) -> bool:
        """Whether every machine gives the same bits, for each row by itself: so that they can be compared."""
        return self.bits == "rows"

    def admits(self, computed: Numerics | None) -> bool:
        """Whether who computes by the numerics ``computed`` may take part in a session of these.

        Args:
            computed: ``None`` of who names none that we know.
        """
        return computed == self or (self.bits == "any" and computed is not None and computed.loose == self)


def gaps(spans: Iterable[Span], end: int, start: int = 0) -> list[Span]:
    """The spans of blocks ``[start, end)`` that none of ``spans`` covers, in order."""
    missing: list[Span] = []
    covered = start
    # Few of them differ, however many peers serve them; and tuples compare faster.
    for span in sorted(set(spans), key=lambda span: (span.start, span.end)):
        if covered >= end:
            break
        if span.start > covered:
            missing.append(Span(covered, min(span.start, end)))
        covered = max(covered, span.end)
    if covered < end:
        missing.append(Span(covered, end))
    return missing


def covered(spans: Iterable[Span]) -> int:
    """How many blocks some span has, however long they are."""
    count = end = 0
    for span in sorted(set(spans), key=lambda span: (span.start, span.end)):
        count += max(0, span.end - max(end, span.start))
        end = max(end, span.end)
    return count


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What routing and the wire need to know of a model, without its weights."""

    name: str
    digest: Digest
    n_blocks: int
    hidden_size: int
    context: int
    """The longest session, in tokens, that the model was made for."""
    vocab_size: int
    kind: ModelKind = "language"
    """Of a graph the blocks are its segments; it has neither hidden states nor a vocabulary, and says 1."""
    adapter: AdapterDigest | None = None
    """The adapter with which its blocks are to be run."""


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Where a peer may be reached. Every address is a multiaddr without its ``/p2p`` part."""

    peer: PeerId
    libp2p: tuple[str, ...] = ()
    """Addresses of its libp2p host (a relay's circuit address among them)."""
    direct: tuple[str, ...] = ()
    """Addresses of its direct carrier, its places at relays, and where it is reached over iroh; empty when it
    offers none of them."""


@dataclass(frozen=True, slots=True)
class Paths:
    """Where Shoal keeps its files, by platformdirs, or all under ``SHOAL_HOME`` when that is set."""

    config: Path
    data: Path
    cache: Path

    @property
    def home(self) -> Path | None:
        """The one folder of everything, when ``SHOAL_HOME`` names it."""
        return self.config if self.config == self.data == self.cache.parent else None

    @property
    def config_file(self) -> Path:
        return self.config / "config.toml"

    @property
    def identity(self) -> Path:
        """The ed25519 key of this machine's node, mode 0600."""
        return self.data / "identity.key"

    @property
    def operator(self) -> Path:
        """The ed25519 key of whoever runs several machines, mode 0600: not of this machine's node."""
        return self.data / "operator.key"

    @property
    def swarms(self) -> Path:
        """One file per joined swarm, mode 0600: they hold the secrets."""
        return self.data / "swarms"

    @property
    def models(self) -> Path:
        return self.data / "models"

    @property
    def graphs(self) -> Path:
        """Graphs that were imported here."""
        return self.data / "graphs"

    @property
    def adapters(self) -> Path:
        """Those that came from peers."""
        return self.data / "adapters"

    @property
    def chat_history(self) -> Path:
        """What was typed in conversations, mode 0600."""
        return self.data / "chat-history.jsonl"

    @property
    def gateway(self) -> Path:
        """API keys, as hashes, and what each has used: SQLite, mode 0600."""
        return self.data / "gateway.db"

    @property
    def audits(self) -> Path:
        """What audits of answers have cost and found (:mod:`shoal.trust.audit_record`)."""
        return self.data / "audits.json"

    @property
    def credits(self) -> Path:
        """Who has given and taken how much, a file for each swarm."""
        return self.data / "credits"

    @property
    def wallet(self) -> Path:
        """The key of a chain, under a password."""
        return self.data / "wallet.json"

    @property
    def chain(self) -> Path:
        """The test chain, and where its contracts are."""
        return self.config / "chain.toml"

    @property
    def payments(self) -> Path:
        """Terms and vouchers of payment channels."""
        return self.data / "payments"

    @property
    def nodes(self) -> Path:
        """One small file per node process that runs on this machine."""
        return self.data / "nodes"
