"""Sessions for answers, and those of conversations kept a while: the next turn begins with the same tokens.

Only requests of one caller with one salt share a session, so that the time of an answer tells nobody
what others have asked. What is kept is bounded in number, tokens and time, and given up at once where a hop
is full.

Hops also know what is kept by name (:mod:`shoal.wire.cache_names`): when this gateway has ended, or another
one of the same database is asked for the next turn, they go on with the KV that they have.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import trio

from shoal.client.session import Session
from shoal.client.swarm import Swarm
from shoal.errors import Busy, ShoalError
from shoal.gateway.access.keys import Caller
from shoal.gateway.api.request import GenerationRequest
from shoal.gateway.database.cache_secret import read_cache_secret, secret_of
from shoal.gateway.database.database import Database
from shoal.types import Digest
from shoal.wire.cache_names import Beginning, cache_keys

KEPT = 8
"""Sessions of conversations that wait for their next turn."""
KEPT_TOKENS = 16384
"""Tokens of KV that all of them may hold on every hop."""
KEPT_S = 120.0
TURN_TOKENS = 1024
"""Room that a conversation's session gets beyond what its first turn needs."""
WORTH_IT = 16
"""Fewer tokens are computed again faster than they are looked for."""
BUSY_S = 60.0
"""How long a request waits for room on the hops."""
LOOK_EVERY_S = 0.1

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose conversations may share a session."""

    caller: str
    salt: str
    model: Digest
    adapter: str | None
    """Its digest, or that of a soft prompt."""
    attested: bool
    """Whether only peers take part that show what they run on."""
    loose: bool = False
    """Whether steps say of its pictures what no receipt does: of such a session no bits are promised."""

    def secret(self, secret: bytes) -> bytes:
        """Of which the names are made of what its sessions leave at hops."""
        attested = "attested" if self.attested else ""
        return secret_of(secret, (self.caller, self.salt, self.model, self.adapter or "", attested))


@dataclass(eq=False)
class Lease:
    """A session while one request has it, or while it waits for the next turn."""

    owner: Owner
    session: Session
    kept_at: float = 0.0
    used: bool = False
    """Whether an earlier request had it."""
    _over: trio.Event = field(default_factory=trio.Event)

    @property
    def tokens(self) -> int:
        """What every hop has reserved for it, beside a soft prompt."""
        return self.session.room + len(self.session.token_ids) - len(self.session.ends.virtual)

    def close(self) -> None:
        """Free it on every hop, soon."""
        self._over.set()

    async def wait_over(self) -> None:
        await self._over.wait()


class Prefixes:
    """Opens sessions in a nursery of its own, so that one may outlive the request that it was opened for."""

    def __init__(self, swarm: Swarm, database: Database) -> None:
        self._swarm = swarm
        self._database = database
        self._secret = b""
        """The gateways'; :meth:`run` reads it."""
        self._kept: list[Lease] = []
        self._nursery: trio.Nursery | None = None
        self._line = trio.Lock()
        """Held by the request that looks for room; those behind it wait in the order that they came."""

    @property
    def kept(self) -> int:
        """Sessions that wait for a next turn."""
        return len(self._kept)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold sessions until cancelled.

        Raises:
            OutOfResources: the database cannot be read at the beginning.
        """
        self._secret = await self._database.run_short(read_cache_secret, self._database)
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            while True:
                await trio.sleep(1.0)
                for lease in [k for k in self._kept if trio.current_time() - k.kept_at > KEPT_S]:
                    self._give_up(lease)

    async def lease(self, asked: GenerationRequest, caller: Caller) -> Lease:
        """A session with room for the prompt and the answer: one that holds much of the prompt, or a new one.

        Raises:
            Busy: no route has room, also not after a while.
            ShoalError: as ``Swarm.session``.
        """
        owner = _owner(asked, caller)
        if asked.turns and (found := self._fitting(owner, asked)) is not None:
            self._kept.remove(found)
            found.used = True
            await self._name(found, in_use=True)
            return found
        return await self.fresh(asked, caller)

    async def fresh(self, asked: GenerationRequest, caller: Caller) -> Lease:
        """A new session. Raises as :meth:`lease`."""
        owner = _owner(asked, caller)
        busy = Busy("too many requests wait for room on the hops", retry_after_s=BUSY_S / 2)
        if not self._line.locked():
            try:
                return await self._open(owner, asked)
            except Busy as error:
                busy = error
        with trio.move_on_after(BUSY_S):
            async with self._line:
                while True:
                    try:
                        return await self._open(owner, asked)
                    except Busy as error:
                        busy = error
                    while self._kept:
                        self._give_up(self._kept[0])
                    await trio.sleep(LOOK_EVERY_S)
        raise busy

    async def keep(self, lease: Lease) -> None:
        """Let the session wait for the conversation's next turn, here or at its hops; the oldest make room
        for it."""
        await self._name(lease, in_use=False)
        lease.kept_at = trio.current_time()
        self._kept.append(lease)
        while len(self._kept) > KEPT or sum(kept.tokens for kept in self._kept) > KEPT_TOKENS:
            self._give_up(self._kept[0])

    async def _name(self, lease: Lease, *, in_use: bool) -> None:
        """Tell the hops by which names to keep a session's KV; by none while it is in use."""
        session = lease.session
        try:
            keys = () if in_use else cache_keys(lease.owner.secret(self._secret), session.token_ids)
            await session.keep(keys)
        except BaseException:
            lease.close()  # whoever was to have it next is not there any more
            raise

    def _fitting(self, owner: Owner, asked: GenerationRequest) -> Lease | None:
        """The kept session that holds most of the prompt, if it is not mostly about something else."""
        best, most = None, WORTH_IT - 1
        # Those of which the KV has gone everywhere, as to another session; else it is made whole with what is
        # left of it.
        for lease in [k for k in self._kept if len(k.session.ring.lost) == len(k.session.ring.route)]:
            self._give_up(lease)
        for lease in [kept for kept in self._kept if not self._doubtful(kept)]:
            ours = lease.owner == owner and lease.tokens >= asked.least_need
            ours = ours and not (lease.session.taken_up and asked.checked)
            prompt = lease.session.prompt_of(asked.prompt)
            shared = lease.session.reusable(prompt, asked.placed) if ours else 0
            if shared > most and shared >= len(lease.session.token_ids) // 2:
                best, most = lease, shared
        return best

    def _doubtful(self, lease: Lease) -> bool:
        """Whether a peer that is distrusted by now has had a part in a session's KV."""
        reputation, places = self._swarm.rings.finder.reputation, lease.session.ring.places
        now = trio.current_time()
        return any(reputation.distrusted(hop.peer, now) for hop in (*places.hops, *places.departed))

    def _give_up(self, lease: Lease) -> None:
        self._kept.remove(lease)
        lease.close()

    async def _open(self, owner: Owner, asked: GenerationRequest) -> Lease:
        assert self._nursery is not None, "run must be running"
        return await self._nursery.start(self._hold, owner, asked, self._tokens(asked))

    async def _hold(
        self, owner: Owner, asked: GenerationRequest, tokens: int, *, task_status: trio.TaskStatus[Lease]
    ) -> None:
        lease = None
        source = None if asked.model.both is None else asked.prompt
        begins = self._beginning(owner, asked)
        try:
            opening = self._swarm.session(
                asked.model.id,
                tokens=tokens,
                attested=owner.attested or None,
                source=source,
                begins=begins,
                loose=owner.loose,
            )
            async with opening as session:
                lease = Lease(owner, session)
                task_status.started(lease)
                await lease.wait_over()
        except ShoalError as error:
            if lease is None:
                raise  # to whoever asked for it
            log.info("a session ended badly: %s", error.message)

    def _beginning(self, owner: Owner, asked: GenerationRequest) -> Beginning | None:
        """What hops may have kept of a request's prompt. Nothing that is to be checked: a hop signs for what
        it did in one session."""
        if not asked.turns or asked.checked or asked.placed:
            return None
        prompt = asked.prompt[:-1]  # the last token is computed always
        return Beginning.of(owner.secret(self._secret), prompt)

    def _tokens(self, asked: GenerationRequest) -> int:
        """What to reserve: room for a long answer where none is limited, and for a next turn too, as long as
        the hops have plenty and nobody waits."""
        member = self._swarm.member
        serving = member.directory.serving(asked.model.local.digest, member.now())
        free = [a.served.tokens_free for a in serving if a.served]
        more = TURN_TOKENS if asked.turns else 0
        for roomy in (asked.need + more, asked.least_need + more):
            if free and min(free) > 4 * roomy and not self._line.locked():
                return min(roomy, asked.model.shape.context)
        return asked.least_need


def _owner(asked: GenerationRequest, caller: Caller) -> Owner:
    attested = caller.attested_only or asked.protect == "attested"
    model = asked.model.local
    loose = any(picture.loose for picture in asked.placed)
    adapter = model.shape.adapter or (model.soft_prompt.digest if model.soft_prompt is not None else None)
    return Owner(caller.id, asked.salt, model.digest, adapter, attested, loose)
