"""What one peer knows of what others gave it and took from it.

Who was given nothing by a peer owes it nothing. A third party's word counts only as far as the third is owed
something itself, and what is spent by it is taken off what the third is owed (a credit network: Dandekar and
others, 2011). So identities that vouch for each other gain nothing together: what they all take as givers is
at most what they gave. Who has no credit is counted by host, as identities cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from shoal.ledger.credits.acknowledgement import MAX_UNITS, PeerName
from shoal.types import PeerId

MAX_PEERS = 4096
"""Remembered, and as many hosts: of more, those go first with whom it is nearly even."""
MAX_REDEEMED = 64
"""Creditors of one peer whose words of it are used up here; more find its word of no use."""
ALLOWANCE = 64 * 1024
"""Units that a host may take on credit a day: two thousand tokens of a model of 32 blocks."""
REFILL_S = 86_400.0
OVERDRAFT = 4
"""A peer may owe a fourth of what it ever gave before it counts as one that only takes."""

Units = Annotated[int, Meta(ge=0, le=MAX_UNITS)]
Standing = Literal["gives", "new", "takes"]


class PeerCredit(Struct, frozen=True):
    """One peer, as far as we have to do with each other."""

    given: Units = 0
    """What it gave us, which we have acknowledged."""
    taken: Units = 0
    """What we gave it, or somebody to whom it owes, against what it gave us."""
    redeemed: dict[PeerName, Units] = {}
    """By creditor of this peer, what of its word was used up here."""

    @property
    def balance(self) -> int:
        """What we owe it; negative: what it owes us."""
        return self.given - self.taken


class HostDebt(Struct, frozen=True):
    """What those of one host took who had no credit."""

    units: Annotated[float, Meta(ge=0, le=MAX_UNITS)]
    at: float
    """When that was so: since then it falls."""

    def left(self, now: float) -> float:
        """What remains of it. A clock that was set back forgives nothing."""
        return max(0.0, self.units - ALLOWANCE * max(0.0, now - self.at) / REFILL_S)


class CreditBook(Struct, frozen=True):
    """All of it. Changes make a new one."""

    peers: dict[PeerName, PeerCredit] = {}
    hosts: dict[Annotated[str, Meta(max_length=256)], HostDebt] = {}

    def credit(self, peer: PeerId, words: Mapping[PeerId, int]) -> int:
        """What a peer may still take against what it gave, to us or to those to whom we owe.

        Args:
            words: what others have signed for it, verified.
        """
        own = self.peers.get(peer, PeerCredit())
        overdraft = own.given // OVERDRAFT
        return own.balance + overdraft + sum(self._usable(peer, debtor, words) for debtor in words)

    def standing(self, peer: PeerId, host: str, words: Mapping[PeerId, int], now: float) -> Standing:
        """How a peer is treated where not all can be served.

        Args:
            host: where it comes from; empty where that is not known, which is one host.
            now: seconds since the epoch.
        """
        if self.credit(peer, words) > 0:
            return "gives"
        debt = self.hosts.get(host)
        return "new" if debt is None or debt.left(now) < ALLOWANCE else "takes"

    def gave_us(self, peer: PeerId, units: int) -> CreditBook:
        """A peer has served us."""
        own = self.peers.get(peer, PeerCredit())
        return self._with(peer, msgspec.structs.replace(own, given=own.given + units))

    def took(
        self, peer: PeerId, host: str, units: int, words: Mapping[PeerId, int], now: float
    ) -> CreditBook:
        """We have served a peer: against what it gave us, then against the word of others, then on credit."""
        own = self.peers.get(peer, PeerCredit())
        mine = max(0, min(units, own.balance + own.given // OVERDRAFT))
        book, left = self, units - mine
        if mine:
            book = book._with(peer, msgspec.structs.replace(own, taken=own.taken + mine))
        for debtor in words:
            used = min(left, book._usable(peer, debtor, words))
            if used:
                book, left = book._use(peer, debtor, used), left - used
        return book._lend(host, left, now) if left else book

    def _usable(self, peer: PeerId, debtor: PeerId, words: Mapping[PeerId, int]) -> int:
        theirs = self.peers.get(debtor)
        if theirs is None or debtor == peer:
            return 0
        if peer not in theirs.redeemed and len(theirs.redeemed) >= MAX_REDEEMED:
            return 0
        return max(0, min(words[debtor] - theirs.redeemed.get(peer, 0), theirs.balance))

    def _use(self, peer: PeerId, debtor: PeerId, units: int) -> CreditBook:
        theirs = self.peers[debtor]
        redeemed = theirs.redeemed | {peer: theirs.redeemed.get(peer, 0) + units}
        changed = msgspec.structs.replace(theirs, taken=theirs.taken + units, redeemed=redeemed)
        return self._with(debtor, changed)

    def _lend(self, host: str, units: int, now: float) -> CreditBook:
        before = self.hosts.get(host)
        debt = HostDebt(min(units + (before.left(now) if before else 0.0), float(MAX_UNITS)), now)
        hosts = self.hosts | {host: debt}
        if len(hosts) > MAX_PEERS:
            del hosts[min(hosts, key=lambda one: hosts[one].left(now))]
        return msgspec.structs.replace(self, hosts=hosts)

    def _with(self, peer: PeerId, credit: PeerCredit) -> CreditBook:
        peers = self.peers | {peer: credit}
        if len(peers) > MAX_PEERS:
            del peers[min(peers, key=lambda one: (one == peer, abs(peers[one].balance)))]
        return msgspec.structs.replace(self, peers=peers)
