"""How soon audits name a hop that cheats: real receipts, rows that are hashes alone, no network.

``python -m shoal.testing.sim.audits`` prints the tables of docs/trust.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import msgspec
from blake3 import blake3

from shoal.net.identity import Identity, verify
from shoal.testing.sim.answers import BLOCKS, HOPS, WIDTH, pretended_answer
from shoal.trust.answer import HopReceipts, KeptAnswer, KeptWindow, check_answer
from shoal.trust.audit import (
    BUDGET,
    AuditAccount,
    AuditTarget,
    Opinion,
    auditable,
    differing_window,
    judge,
    misfit_window,
    next_target,
    target_at,
)
from shoal.trust.canary import LAST, is_due
from shoal.trust.independence import whereabouts
from shoal.trust.receipt import sign_windows
from shoal.trust.rows import HASH, RowLog

LEAST_TOKENS, MOST_TOKENS = 64, 512
"""Of an answer with its prompt, drawn evenly."""


@dataclass(frozen=True, slots=True)
class SimulatedRun:
    """What came of one client's requests."""

    named_at: int | None
    """The request at which the cheat was named, from 1."""
    accused: int
    """Honest hops that were named."""
    share: float
    """Of the compute of all answers, what audits took."""


def _through(hop: int, rows: RowLog, tokens: int, *, lie: bool) -> RowLog:
    """What a hop makes of rows: the same always; or something else, if it cheats."""
    made = RowLog()
    tag = bytes([hop, lie])
    made.note(0, tokens, b"".join(blake3(tag + rows.leaf(at)).digest() for at in range(tokens)))
    return made


class SimulatedClient:
    """One client that asks hops of which one cheats, and audits within a budget.

    Args:
        cheats: share of the requests in which the hop cheats.
        canaries: share of the budget that canaries may take.
        spared: whether the hop cheats strangers alone, as canaries are: this client is known to audit.
    """

    def __init__(
        self, seed: int, cheats: float, budget: float = BUDGET, canaries: float = 0.0, *, spared: bool = False
    ) -> None:
        self._random = Random(seed)
        self._budget = budget
        self._cheats = cheats
        self._canaries = canaries
        self._spared = spared
        self._liar = self._random.randrange(HOPS)
        self._peers = [Identity.from_seed(self._random.randbytes(32)) for _ in range(HOPS)]
        self._account = AuditAccount().draw(self._random.random)

    def run(self, requests: int) -> SimulatedRun:
        """Ask until the cheat is named, or so often."""
        accused = 0
        for number in range(1, requests + 1):
            found = self._request() | self._canary()
            accused += len(found - {self._liar})
            if self._liar in found:
                return SimulatedRun(number, accused, self._account.share)
        return SimulatedRun(None, accused, self._account.share)

    def _request(self) -> set[int]:
        """The hops that are named after one answer."""
        answer = self._answer(self._random.random() < self._cheats and not self._spared, self._tokens())
        faults = check_answer(answer, verify)
        hops, named = auditable(answer, faults), set[int]()
        self._account = self._account.answered(answer.tokens, BLOCKS)
        while (target := self._due(answer, hops)) is not None:
            del hops[target.hop]
            if self._audit(answer, target):
                named.add(target.hop)
        return named

    def _canary(self) -> set[int]:
        """The hops that are named by a canary, if one is due."""
        if not self._canaries:
            return set()
        tokens, named = self._tokens(), set[int]()
        if not is_due(self._account, tokens * BLOCKS, self._budget, self._canaries):
            return named
        answer = self._answer(self._random.random() < self._cheats, tokens)
        self._account = self._account.pay_canary(tokens * BLOCKS)
        hops = auditable(answer, check_answer(answer, verify))
        while (target := target_at(self._random.random(), LAST, answer, hops, 2 * WIDTH)) is not None:
            del hops[target.hop]
            self._account = self._account.pay_canary(target.cost)
            if self._audit(answer, target):
                named.add(target.hop)
        return named

    def _due(self, answer: KeptAnswer, hops: dict[int, int]) -> AuditTarget | None:
        budget = self._budget * (1 - self._canaries)
        target = next_target(self._account, answer, hops, budget, 2 * WIDTH)
        if target is not None:
            self._account = self._account.pay(target.cost).draw(self._random.random)
        return target

    def _audit(self, answer: KeptAnswer, target: AuditTarget) -> bool:
        """Whether two auditors find the hop out."""
        came = self._links[target.hop]
        if misfit_window(answer, target, came.copy(target.tokens)) is not None:
            return False
        computed = _through(target.hop, came, target.tokens, lie=False)
        window = differing_window(answer, target, computed)
        if window is None:
            return False
        self._account = self._account.pay(target.cost)
        root, hosts = computed.window(window)[1], {"one": "192.0.2.1", "other": "198.51.100.1"}
        opinions = [Opinion(name, window, root, whereabouts([name], [at])) for name, at in hosts.items()]
        return judge(opinions).verdict == "cheat"

    def _tokens(self) -> int:
        return self._random.randint(LEAST_TOKENS, MOST_TOKENS)

    def _answer(self, lie: bool, tokens: int) -> KeptAnswer:
        first = RowLog(self._random.randbytes(tokens * HASH))
        self._links = [first]
        for hop in range(HOPS):
            self._links.append(_through(hop, self._links[-1], tokens, lie=lie and hop == self._liar))
        peers, nonce = [peer.peer for peer in self._peers], self._random.randbytes(16)
        answer = pretended_answer(self._random, peers, nonce, tokens, first)
        return msgspec.structs.replace(answer, hops=tuple(map(self._signed, [answer] * HOPS, range(HOPS))))

    def _signed(self, answer: KeptAnswer, hop: int) -> HopReceipts:
        came, went, sign = self._links[hop], self._links[hop + 1], self._peers[hop].sign
        signed = sign_windows(answer.work(hop), answer.tokens, came, went, sign)
        kept = tuple(KeptWindow(one.sent, one.came, one.went, one.signature) for one in signed)
        return msgspec.structs.replace(answer.hops[hop], receipts=kept)


def named_within(runs: Sequence[SimulatedRun], requests: int) -> int:
    """In how many runs the cheat was named by then."""
    return sum(run.named_at is not None and run.named_at <= requests for run in runs)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--budget", type=float, default=BUDGET)
    parser.add_argument("--canaries", type=float, nargs="*", default=(), metavar="SHARE")
    asked = parser.parse_args()
    marks = (10, 25, 50, 100, 200, 400)
    lines = [f"| it cheats on | {' | '.join(map(str, marks))} | audits took at most | honest hops accused |"]
    kinds = {f"{cheats:.0%} of requests": (cheats, 0.0) for cheats in (1.0, 0.5, 0.2, 0.1)}
    if asked.canaries:
        kinds = {f"strangers; canaries have {share:.0%}": (1.0, share) for share in asked.canaries}
    for kind, (cheats, share) in kinds.items():
        runs = [
            SimulatedClient(seed, cheats, asked.budget, share, spared=bool(asked.canaries)).run(marks[-1])
            for seed in range(asked.runs)
        ]
        most = max(run.share for run in runs)
        cells = " | ".join(str(named_within(runs, mark)) for mark in marks)
        accused = sum(run.accused for run in runs)
        lines.append(f"| {kind} | {cells} | {most:.1%} | {accused} |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
