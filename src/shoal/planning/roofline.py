"""How fast a machine can be at best: the roofline (Williams, Waterman and Patterson, 2009). Pure.

A forward reads bytes and computes operations, and the slower of the two bounds it:

    seconds = max(bytes / bandwidth, operations / ceiling)

Blocks run one after another, so a span's time is the sum of its blocks'. For ``n`` rows of ``s`` sessions,
which have ``c`` tokens cached each, one block takes

    bytes      = weights + experts_read(n) × bytes of an expert + s × (c + n/s) × KV bytes of a token
    operations = n × (2 × weights that a row uses)                   at the format's ceiling
               + n × (c + (n/s + 1)/2) × 4 × heads × head_dim        at float32's ceiling

A multiply-add counts as two operations. A row sees the tokens cached, those before it in its own step, and
itself; a sliding window bounds what it sees, and what is read. Of ``E`` experts each row takes ``k`` by
chance: ``n`` rows need ``E × (1 − (1 − k/E)ⁿ)``. Activations stay in the caches, and are left out.

A decode step has as many rows as sessions; with few it is bound by memory, and nearly all of that is weights.
From about ``ceiling / bandwidth × bytes of a weight / 2`` rows on, the ridge, it is bound by arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from shoal.routing.route import routed_span
from shoal.types import WEIGHT_BYTES, Format, PrivateEnds, Span

Bound = Literal["memory", "compute", "network"]
"""What the most time goes to."""

KvElement = Literal["float32", "bfloat16", "int8"]
"""What keys and values are kept in."""
ELEMENT_BYTES: Mapping[KvElement, int] = {"float32": 4, "bfloat16": 2, "int8": 1}
FLOAT = 4
"""Bytes of a float32: of a scale, and of every weight that is in no matrix."""
PIECE = 512
"""Tokens of one forward of a prefill, at most."""
LINK = 125e6
RTT_S = 1e-3
"""Bytes in a second, and seconds of a round trip, where nobody says better: a local network of 1 Gb/s."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a machine can do at best."""

    name: str
    memory: int
    """Bytes that it has for weights and KV."""
    bandwidth: float
    """Bytes read from memory in a second."""
    ops: Mapping[Format, float]
    """Operations in a second of a matrix product of many rows, by the weights' format; ``fp32`` is there."""
    link: float
    """Bytes in a second to and from other machines."""
    rtt_s: float
    """Seconds of a round trip to another machine."""

    def ceiling(self, format: Format) -> float:
        """Operations in a second in ``format``; float32's where the format's are not known."""
        return self.ops.get(format, self.ops["fp32"])


@dataclass(frozen=True, slots=True)
class PartCost:
    """What one block, or the head, holds, reads and computes."""

    weights: int
    """Weights of the matrices that every row is multiplied with."""
    format: Format
    """What these matrices are held in, and the experts'."""
    outputs: int = 0
    """Rows of these matrices, each of which has a scale in int8 and w8a8."""
    other: int = 0
    """Weights that stay float32: norms, biases, routers."""
    experts: int = 0
    """Experts of which each row takes ``active``; 0: the block is dense."""
    active: int = 0
    expert_weights: int = 0
    """Weights of one expert."""
    expert_outputs: int = 0
    """Rows of one expert's matrices."""
    kv_elements: int = 0
    """Elements of one token's keys and values."""
    kv_vectors: int = 0
    """Vectors that these make up, one for each head's key and value: each has a scale in int8."""
    kv: KvElement = "float32"
    attention: int = 0
    """Operations of a row for each token that it sees."""
    window: int = 0
    """Tokens that a row sees at most; 0: all."""
    paged: bool = False
    """KV lies in pages, so that a window saves no memory."""
    state: int = 0
    """Bytes of a session's recurrent state, which does not grow."""
    resident: int = 0
    """Bytes that are held, and that no step reads: an embedding."""
    weight_bytes: float = 0.0
    """Bytes of a weight; 0: what the format says."""

    @property
    def expert_bytes(self) -> float:
        """Of one expert."""
        return self._matrix_bytes(self.expert_weights, self.expert_outputs)

    @property
    def dense_bytes(self) -> float:
        """Of what every step reads."""
        return self._matrix_bytes(self.weights, self.outputs) + FLOAT * self.other

    @property
    def bytes(self) -> float:
        """Of all weights, as they are held."""
        return self.dense_bytes + self.experts * self.expert_bytes + self.resident

    @property
    def kv_bytes(self) -> float:
        """Of one token."""
        scales = FLOAT * self.kv_vectors if self.kv == "int8" else 0
        return ELEMENT_BYTES[self.kv] * self.kv_elements + scales

    def kv_held(self, tokens: int) -> float:
        """Bytes of a session of ``tokens`` tokens."""
        return self.state + self.kv_bytes * (tokens if self.paged else self._seen(tokens))

    def read(self, rows: int, sessions: int, context: int) -> float:
        """Bytes that a step reads."""
        experts = 0.0
        if self.experts:
            experts = self.experts * (1 - (1 - self.active / self.experts) ** rows)
        kv = self.state + self.kv_bytes * (self._seen(context) + rows / sessions)
        return self.dense_bytes + experts * self.expert_bytes + sessions * kv

    def linear_ops(self, rows: int) -> float:
        """Operations of the matrices."""
        return 2.0 * rows * (self.weights + self.active * self.expert_weights)

    def attention_ops(self, rows: int, sessions: int, context: int) -> float:
        """Operations of attention."""
        return rows * self.attention * self._seen(context + (rows / sessions + 1) / 2)

    def _matrix_bytes(self, weights: int, outputs: int) -> float:
        a_weight = self.weight_bytes or WEIGHT_BYTES[self.format]
        return a_weight * weights + (FLOAT * outputs if self.format in ("int8", "w8a8") else 0)

    def _seen(self, tokens: float) -> float:
        return min(tokens, self.window) if self.window else tokens


@dataclass(frozen=True, slots=True)
class SpanCost:
    """The parts that a machine runs, in order."""

    blocks: tuple[PartCost, ...]
    hidden_size: int
    head: PartCost | None = None
    """The head, where the machine runs it too. The embedding is a look-up, and costs nothing."""
    own: tuple[PartCost, ...] = ()
    """Blocks that are no part of these, as the client runs them itself, beside the head."""

    @property
    def client(self) -> SpanCost:
        """What the client runs."""
        return SpanCost(self.own, self.hidden_size, self.head)

    @property
    def bytes(self) -> float:
        """Of all weights, as they are held."""
        return sum(part.bytes for part in self._parts())

    @property
    def kv_bytes(self) -> float:
        """Of one token, in all blocks."""
        return sum(block.kv_bytes for block in self.blocks)

    def kv_held(self, tokens: int) -> float:
        """Bytes of a session of ``tokens`` tokens."""
        return sum(block.kv_held(tokens) for block in self.blocks)

    def keep(self, own: PrivateEnds) -> SpanCost:
        """The same, of which the client runs the first and the last blocks itself.

        Raises:
            UsageError: nothing is left to others.
        """
        routed = routed_span(own, len(self.blocks))
        kept = self.blocks[: routed.start] + self.blocks[routed.end :]
        return replace(self, blocks=self.blocks[routed.start : routed.end], own=kept)

    def part(self, span: Span) -> SpanCost:
        """Those blocks, without the head."""
        return SpanCost(self.blocks[span.start : span.end], self.hidden_size)

    def _parts(self) -> Iterable[PartCost]:
        return (*self.blocks, self.head) if self.head else self.blocks


@dataclass(frozen=True, slots=True)
class Estimate:
    """The least time that a forward can take."""

    seconds: float
    bound: Bound
    bytes: float = 0.0
    """Read from memory."""
    ops: float = 0.0
    """Computed."""

    @property
    def intensity(self) -> float:
        """Operations for each byte read: where the forward stands below the roofline."""
        return self.ops / self.bytes


def step_time(
    machine: Machine, cost: SpanCost, rows: int, context: int, *, sessions: int | None = None
) -> Estimate:
    """The time of one forward.

    Args:
        rows: tokens that go through the blocks, 1 or more.
        context: tokens that each session has cached before.
        sessions: how many share the rows; by default each has one, as in decoding. The head computes one row
            of each.
    """
    sessions = rows if sessions is None else sessions
    done = [_part_time(machine, block, rows, sessions, context) for block in cost.blocks]
    if cost.head:
        done.append(_part_time(machine, cost.head, sessions, sessions, 0))
    return together(done)


def together(estimates: Iterable[Estimate]) -> Estimate:
    """One after another: bound by what most of the time goes to."""
    spent: dict[Bound, float] = {"memory": 0.0, "compute": 0.0, "network": 0.0}
    read = ops = 0.0
    for estimate in estimates:
        spent[estimate.bound] += estimate.seconds
        read, ops = read + estimate.bytes, ops + estimate.ops
    return Estimate(sum(spent.values()), max(spent, key=lambda bound: spent[bound]), read, ops)


def _part_time(machine: Machine, part: PartCost, rows: int, sessions: int, context: int) -> Estimate:
    read = part.read(rows, sessions, context)
    linear, attention = part.linear_ops(rows), part.attention_ops(rows, sessions, context)
    memory_s = read / machine.bandwidth
    compute_s = linear / machine.ceiling(part.format) + attention / machine.ceiling("fp32")
    bound: Bound = "memory" if memory_s >= compute_s else "compute"
    return Estimate(max(memory_s, compute_s), bound, read, linear + attention)


def hop_time(machine: Machine, rows: int, row_bytes: float) -> Estimate:
    """The way of ``rows`` rows of hidden states, of ``row_bytes`` encoded bytes each, from a machine."""
    return Estimate(machine.rtt_s / 2 + rows * row_bytes / machine.link, "network")


def prefill_time(machine: Machine, cost: SpanCost, tokens: int, piece: int = PIECE) -> Estimate:
    """The time of a prompt of ``tokens`` tokens, sent in pieces; the head sees its last row only."""
    done: list[Estimate] = []
    for at in range(0, tokens, piece):
        last = at + piece >= tokens
        part = cost if last else SpanCost(cost.blocks, cost.hidden_size)
        done.append(step_time(machine, part, min(piece, tokens - at), at, sessions=1))
    return together(done)


def of_roofline(seconds: float, estimate: Estimate) -> float:
    """The part of the possible speed that a forward reached which was measured to take ``seconds``."""
    return estimate.seconds / seconds
