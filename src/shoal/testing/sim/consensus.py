"""Whether consensus names who lied and who was lazy, and nobody else: real receipts, no network.

``python -m shoal.testing.sim.consensus`` prints the figures of docs/trust.md. Of three replicas one lies from
some row of one hop on, and one is lazy in some hop: it has computed nothing, and has to answer all the same.
Rows are hashes alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from random import Random
from typing import Literal

import msgspec
from blake3 import blake3

from shoal.net.identity import Identity, verify
from shoal.testing.sim.answers import HOPS, pretended_answer
from shoal.testing.sim.audits import LEAST_TOKENS, MOST_TOKENS
from shoal.trust.answer import HopReceipts, KeptAnswer, KeptWindow, check_answer
from shoal.trust.consensus import REPLICAS, HopCheck, ReplicaComparison, ReplicaWork, commitment, compare
from shoal.trust.independence import Whereabouts, whereabouts
from shoal.trust.receipt import sign_windows
from shoal.trust.rows import HASH, WINDOW, RowLog, windows

Lie = Literal["went", "came", "sent"]
"""What a liar signs falsely: what it made; what it was given, too; or of which positions it sent rows."""
LAZY = ("copies a commitment", "shows what others have shown", "signs for nothing")
"""What one that has computed nothing may try."""
LIES: tuple[tuple[Lie, int], ...] = (("went", 0), ("went", 1), ("came", 0), ("sent", 0))
"""What is simulated, with how many third parties that lie."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one answer."""

    liar: tuple[int, int]
    lazy: tuple[int, int]
    """The replica and the hop of each."""
    named: frozenset[tuple[int, int]]
    """Whom a third party found out."""
    told: frozenset[tuple[int, int]]
    """Whose receipts alone show that it is at fault: it is told and left out."""
    at_odds: frozenset[tuple[int, int]]
    """Two neighbours each, of whom one lies and nothing shows which."""
    rows: float
    """Rows through blocks that were computed beyond the answer's own, relative to those."""
    confirmed: bool
    """Whether the first replica's rows were confirmed at every hop."""


class SimulatedConsensus:
    """One answer, computed by replicas of which one lies and one is lazy.

    Args:
        false: how many of the third parties lie, each in its own way.
        lie: what the liar signs falsely.
    """

    def __init__(self, seed: int, *, cheats: bool = True, false: int = 0, lie: Lie = "went") -> None:
        self._lie: Lie = lie
        self._received = list[RowLog]()
        self._random = random = Random(seed)
        self._cheats, self._false = cheats, false
        self._tokens = random.randint(LEAST_TOKENS, MOST_TOKENS)
        self._nonce = random.randbytes(16)
        self._peers = [
            [Identity.from_seed(random.randbytes(32)) for _ in range(HOPS)] for _ in range(REPLICAS)
        ]
        who = random.sample(range(REPLICAS), 2)
        self._liar, self._lazy = ((replica, random.randrange(HOPS)) for replica in who)
        self._lie_from = random.randrange(self._tokens)
        self._how = LAZY[random.randrange(len(LAZY))]
        self._sent = RowLog(random.randbytes(self._tokens * HASH))
        self._computed = 0.0

    def run(self) -> Outcome:
        """Compute, commit, reveal, compare."""
        answers = [self._answer(replica) for replica in range(REPLICAS)]
        committed = [
            [self._committed(answers, replica, hop) for hop in range(HOPS)] for replica in range(REPLICAS)
        ]
        told, at_odds = set[tuple[int, int]](), set[tuple[int, int]]()
        rings: list[list[ReplicaWork | None]] = []
        for replica, answer in enumerate(answers):
            faults = check_answer(answer, verify, self._received[replica])
            unsound = {fault.hops[0] for fault in faults if len(fault.hops) == 1}
            at_odds |= {(replica, hop) for fault in faults if len(fault.hops) == 2 for hop in fault.hops}
            ring = list[ReplicaWork | None]()
            for hop, receipts in enumerate(answer.hops):
                opens = committed[replica][hop] == self._opened(answer, hop)
                sound = opens and hop not in unsound
                if not sound:
                    told.add((replica, hop))
                ring.append(self._work(replica, hop, receipts) if sound else None)
            rings.append(ring)
        found = self._settled(rings)
        named = frozenset((one.replica, one.hop) for one in found.named)
        confirmed = not found.open and all(found.confirmed) and all(0 in right for right in found.right)
        cost = self._computed / (self._tokens * HOPS)
        outcome = frozenset(told), frozenset(at_odds)
        return Outcome(self._liar, self._lazy, named, *outcome, cost, confirmed)

    def _settled(self, rings: list[list[ReplicaWork | None]]) -> ReplicaComparison:
        sent = [self._sent.window(number)[1] for number in range(windows(self._tokens))]
        checks: dict[int, list[HopCheck]] = {}
        while (found := compare(sent, rings, checks)).disputed is not None:
            hop, last = found.disputed.hop, found.disputed.window
            rows, asked = self._sent, len(checks.get(hop, ()))
            for before in range(hop + 1):
                rows = self._through(before, rows, lie=before == hop and asked < self._false, tag=9 + asked)
            self._computed += min((last + 1) * WINDOW, self._tokens)
            went = tuple(rows.window(number)[1] for number in range(last + 1))
            name = f"third {asked}"
            checks.setdefault(hop, []).append(HopCheck(name, whereabouts([name], [f"203.0.{asked}.1"]), went))
        return found

    def _answer(self, replica: int) -> KeptAnswer:
        """What a replica has signed; a lazy hop sends rubbish on."""
        came = [self._sent]
        for hop in range(HOPS):
            lazy = self._cheats and (replica, hop) == self._lazy
            lie = self._cheats and (replica, hop) == self._liar
            came.append(self._through(hop, came[-1], lie=lie or lazy, tag=replica + 1 + lazy))
            self._computed += self._tokens if replica and not lazy else 0
        self._received.append(came[-1])
        peers = [peer.peer for peer in self._peers[replica]]
        answer = pretended_answer(self._random, peers, self._nonce, self._tokens, self._sent)
        signed = [self._signed(answer, replica, hop, came) for hop in range(HOPS)]
        return msgspec.structs.replace(answer, hops=tuple(signed))

    def _signed(self, answer: KeptAnswer, replica: int, hop: int, came: list[RowLog]) -> HopReceipts:
        went, lazy = came[hop + 1], self._cheats and (replica, hop) == self._lazy
        if lazy and self._how != "signs for nothing":
            went = self._through(hop, came[hop], lie=False)  # by then others have revealed it
        sign, given = self._peers[replica][hop].sign, came[hop]
        if self._cheats and (replica, hop) == self._liar and self._lie == "came":
            given = self._through(hop, given, lie=True, tag=99)
        if self._cheats and (replica, hop) == self._liar and self._lie == "sent":
            went = RowLog()
        made = sign_windows(answer.work(hop), self._tokens, given, went, sign)
        kept = tuple(KeptWindow(one.sent, one.came, one.went, one.signature) for one in made)
        return msgspec.structs.replace(answer.hops[hop], receipts=kept)

    def _committed(self, answers: list[KeptAnswer], replica: int, hop: int) -> bytes:
        """What a hop commits to before anybody has shown anything."""
        if self._cheats and (replica, hop) == self._lazy and self._how == "copies a commitment":
            return self._opened(answers[(replica + 1) % REPLICAS], hop)
        if self._cheats and (replica, hop) == self._lazy and self._how == "shows what others have shown":
            return self._random.randbytes(32)
        return self._opened(answers[replica], hop)

    def _opened(self, answer: KeptAnswer, hop: int) -> bytes:
        """The commitment that a hop's receipts open."""
        return commitment(self._nonce, answer.hops[hop].peer, answer.receipts(hop))

    def _work(self, replica: int, hop: int, kept: HopReceipts) -> ReplicaWork:
        at: Whereabouts = whereabouts([kept.peer], [f"192.{replica}.{hop}.1"])
        came, went = (tuple(getattr(one, side) for one in kept.receipts) for side in ("came", "went"))
        return ReplicaWork(at, came, went)

    def _through(self, hop: int, rows: RowLog, *, lie: bool, tag: int = 0) -> RowLog:
        """What a hop makes of rows: the same always; or something else from some row on, if it lies."""
        made = RowLog()
        leaves = [
            blake3(bytes([hop, tag if lie and at >= self._lie_from else 0]) + rows.leaf(at)).digest()
            for at in range(self._tokens)
        ]
        made.note(0, self._tokens, b"".join(leaves))
        return made


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    asked = parser.parse_args()
    lines = [
        "| the liar signs falsely | third parties that lie | named | told alone | at odds with a neighbour "
        "| lazy one named or told | honest ones named or told | answers confirmed that lie | computed |"
    ]
    for lie, false in LIES:
        began = time.perf_counter()
        runs = [SimulatedConsensus(seed, false=false, lie=lie).run() for seed in range(asked.runs)]
        each_s = (time.perf_counter() - began) / asked.runs
        named = sum(run.liar in run.named for run in runs)
        told = sum(run.liar in run.told - run.named for run in runs)
        odds = sum(run.liar in run.at_odds - run.told - run.named for run in runs)
        lazy = sum(run.lazy in run.named | run.told for run in runs)
        honest = sum(len((run.named | run.told) - {run.liar, run.lazy}) for run in runs)
        wrong = sum(run.confirmed and run.liar[0] == 0 for run in runs)
        rows = sum(run.rows for run in runs) / asked.runs
        lines.append(
            f"| {lie} | {false} | {named} | {told} | {odds} | {lazy} | {honest} | {wrong} "
            f"| {rows:.2f} times the answer's rows more, {each_s * 1e3:.0f} ms |"
        )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
