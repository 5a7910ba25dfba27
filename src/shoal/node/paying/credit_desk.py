"""Credits at a node: who is let in where not all can be, and what each session takes.

A session's work is counted by whoever computes it, as a number; once in a while, and not inside of a step, it
is charged and written to the file that this machine's clients share.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec
import trio

from shoal.errors import NotAllowed, RemoteProtocolError, ShoalError
from shoal.executor.engine import StepOutput
from shoal.ledger.credits.acknowledgement import CheckSignature, check_acknowledgements
from shoal.ledger.credits.claim import check_claim_of, read_word
from shoal.ledger.credits.credit_book import CreditBook
from shoal.ledger.credits.credit_file import CreditFile, KeptCredits
from shoal.ledger.credits.precedence import check_precedence
from shoal.net.channel import Channel
from shoal.net.handshake_backlog import network_of
from shoal.node.handlers import Handlers
from shoal.types import PeerId, Span
from shoal.wire.messages import Open, Step
from shoal.wire.paying import Acknowledged, ShownCredit

FLUSH_S = 2.0
"""Between two times that work is charged. A node that is killed forgets so much."""
MAX_PARTIES = 1024
"""Clients that are remembered beyond their sessions, with what they have shown."""
MAX_WAITING_WORDS = 1024
"""Acknowledgements between two times that the file is written; of one debtor the last."""

log = logging.getLogger(__name__)

Measured = Callable[[Step, StepOutput], None]


@dataclass(frozen=True, eq=False, slots=True)
class Party:
    """In whose name a client asks."""

    peer: PeerId
    host: str
    """Where it comes from, as far as identities are counted there: an IPv6 network is one."""
    words: Mapping[PeerId, int] = field(default_factory=dict[PeerId, int])
    """What others have signed for it."""


@dataclass(eq=False, slots=True)
class SessionWork:
    """What one session has had computed."""

    party: Party
    blocks: int
    tokens: int = 0
    """Counted up by whoever computes, one at a time."""
    charged: int = 0


class CreditDesk:
    """See the module. ``run`` must be running.

    Args:
        peer: this node.
        wall: seconds since the epoch.
    """

    def __init__(
        self, file: CreditFile, peer: PeerId, verify: CheckSignature, wall: Callable[[], float]
    ) -> None:
        self._file = file
        self._peer = peer
        self._verify = verify
        self._wall = wall
        self._kept = KeptCredits()
        self._mark = 0
        self._parties: OrderedDict[PeerId, tuple[ShownCredit | None, Party]] = OrderedDict()
        self._sessions: dict[bytes, SessionWork] = {}
        self._over: list[SessionWork] = []
        self._due: dict[Party, int] = {}
        self._words: dict[PeerId, Acknowledged] = {}

    @property
    def book(self) -> CreditBook:
        """The credits as they were when they were last written, or later."""
        return self._kept.book

    def register(self, handlers: Handlers) -> None:
        """Have the messages given here."""
        handlers.register(Acknowledged, self._acknowledged)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Charge and write until cancelled, and once more then.

        Raises:
            BadLedgerFile, OutOfResources: the file cannot be read.
        """
        self._kept = await trio.to_thread.run_sync(self._file.read)
        task_status.started()
        try:
            while True:
                await trio.sleep(FLUSH_S)
                await self._flush()
        finally:
            with trio.move_on_after(FLUSH_S, shield=True):
                await self._flush()

    def check(self, channel: Channel, message: Open, *room: tuple[int, int]) -> None:
        """Refuse who must wait.

        Args:
            room: how many places, or tokens, are free, and of how many.

        Raises:
            Busy: says when to come back.
            NotAllowed: the claim in whose name it asks is none.
        """
        self._charge()
        party = self._party(channel, message.credit)
        standing = self.book.standing(party.peer, party.host, party.words, self._wall())
        # Whether one who gives finds room, shares decide: it may push others out.
        if standing != "gives":
            for free, total in room:
                check_precedence(standing, free, total)

    def metered(self, channel: Channel, message: Open, measured: Measured) -> Measured:
        """Count what a session that is let in has computed, beside ``measured``."""
        span = Span(message.start, message.end)
        work = SessionWork(self._party(channel, message.credit), len(span))
        self._sessions[message.session] = work

        def noted(step: Step, result: StepOutput) -> None:
            work.tokens += step.tokens
            measured(step, result)

        return noted

    def ended(self, session: bytes) -> None:
        """A session is over: what it has taken is charged the next time."""
        work = self._sessions.pop(session, None)
        if work is not None:
            self._over.append(work)
            if len(self._over) >= MAX_PARTIES:
                self._charge()

    def _party(self, channel: Channel, shown: ShownCredit | None) -> Party:
        known = self._parties.get(channel.peer)
        if known is not None and known[0] == shown:
            self._parties.move_to_end(channel.peer)
            return known[1]
        host = _counted(channel.host)
        if shown is None:
            party = Party(channel.peer, host)
        else:
            try:
                words = check_claim_of(shown, channel.peer, self._verify, self._wall())
            except RemoteProtocolError as error:
                check = "set the clock, or ask without credits"
                raise NotAllowed(error.message, check=check) from error
            party = Party(PeerId(shown.peer), host, words)
        self._parties[channel.peer] = shown, party
        while len(self._parties) > MAX_PARTIES:
            self._parties.popitem(last=False)
        return party

    async def _acknowledged(self, channel: Channel, message: Acknowledged, payload: bytes) -> None:
        word = read_word(message.word)
        known = self._parties.get(channel.peer)
        if known is None or known[1].peer != word.debtor:
            return  # it comes late, of one whom we have forgotten
        before = self._kept.words.get(word.debtor)
        if before is not None and before.units >= word.units:
            return
        check_acknowledgements((word,), self._peer, self._verify)
        if len(self._words) < MAX_WAITING_WORDS or word.debtor in self._words:
            self._words[PeerId(word.debtor)] = message

    def _charge(self) -> None:
        """Take what is due off the credits in memory, and note it for the file."""
        for work in (*self._sessions.values(), *self._over):
            tokens = work.tokens  # read once, as it may be counted up meanwhile
            if units := (tokens - work.charged) * work.blocks:
                work.charged = tokens
                self._due[work.party] = self._due.get(work.party, 0) + units
                self._kept = _taken(self._kept, {work.party: units}, self._wall())
        self._over = []

    async def _flush(self) -> None:
        self._charge()
        due, words = self._due, [read_word(one.word) for one in self._words.values()]
        if not due and not words:
            await self._read_again()
            return
        self._due, self._words = {}, {}
        now = self._wall()

        def change(kept: KeptCredits) -> KeptCredits:
            for word in words:
                kept = kept.with_word(word)
            return _taken(kept, due, now)

        try:
            kept = await trio.to_thread.run_sync(self._file.change, change)
        except ShoalError as error:
            log.warning("credits were not written, and are the next time: %s", error.message)
            for party, units in due.items():
                self._due[party] = self._due.get(party, 0) + units
            return
        # What was charged meanwhile is in memory alone yet; what clients of this machine wrote is here now.
        self._kept = _taken(kept, self._due, self._wall())

    async def _read_again(self) -> None:
        """Take over what clients of this machine have written."""

        def read() -> tuple[int, KeptCredits] | None:
            mark = self._file.mark()
            return None if mark == self._mark else (mark, self._file.read())

        try:
            found = await trio.to_thread.run_sync(read)
        except ShoalError as error:
            log.warning("credits were not read, and are the next time: %s", error.message)
            return
        if found is not None:
            self._mark, kept = found
            self._kept = _taken(kept, self._due, self._wall())


def _taken(kept: KeptCredits, due: Mapping[Party, int], now: float) -> KeptCredits:
    book = kept.book
    for party, units in due.items():
        book = book.took(party.peer, party.host, units, party.words, now)
    return msgspec.structs.replace(kept, book=book)


def _counted(host: str) -> str:
    """A host as identities are counted: whoever has an IPv6 network has all its addresses."""
    return network_of(host) if ":" in host else host
