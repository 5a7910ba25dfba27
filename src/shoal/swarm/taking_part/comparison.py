"""Notes compared with one peer at a time: what we hear of others from it, and it from us, within bounds."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Collection, Sequence

import trio

from shoal.net.fair_rate import FairRate
from shoal.net.network import Network
from shoal.swarm import anti_entropy
from shoal.swarm.announcement import Announcement
from shoal.swarm.anti_entropy import EVERYONE, MAX_PEERS, DirectoryDifference, DirectoryPart, DirectoryQuery
from shoal.swarm.clock import Clock
from shoal.swarm.directory import Directory
from shoal.swarm.views.look_up import DIAL_WITHIN_S, manifest_key
from shoal.types import Digest, PeerId

DIRECTORY_PROTOCOL = "/shoal/directory/3"
ANSWER_LIMIT = 900 << 10
CHECKED_PER_S = 100
"""Words a second that are taken from other directories: a fifth of a millisecond each, for the signature."""
CHECKED_AT_ONCE = 2048
"""After a rest: a newcomer takes all that one answer holds."""
SLICE = 16
"""Words that are checked before others have their turn on the loop: some milliseconds."""
FRIENDS_TOLD = 16
ANSWERS_PER_S = 16
ANSWERS_AT_ONCE = 128


class DirectoryComparison:
    """Asks and answers for one member.

    Args:
        now: by a clock that only runs forwards.
        take: takes in a word; returned if it is one of a peer that was taken for gone.
        ask: asks these peers themselves, of whom accounts differ.
    """

    def __init__(
        self,
        network: Network,
        directory: Directory,
        clock: Clock,
        now: Callable[[], float],
        chance: random.Random,
        *,
        take: Callable[[bytes], Announcement | None],
        ask: Callable[[Sequence[Announcement]], Awaitable[None]],
    ) -> None:
        self._network = network
        self._directory = directory
        self._clock = clock
        self._now = now
        self._random = chance
        self._take = take
        self._ask = ask
        self._checked = FairRate(CHECKED_PER_S, CHECKED_AT_ONCE)
        self._answered = FairRate(ANSWERS_PER_S, ANSWERS_AT_ONCE)
        network.answer(DIRECTORY_PROTOCOL, self.tell)

    async def pull(
        self,
        peer: PeerId,
        part: DirectoryPart = EVERYONE,
        models: Collection[Digest] = (),
        most: int = MAX_PEERS,
    ) -> None:
        """Hear what ``peer`` knows of a part of the swarm and we do not; ask those of whom accounts differ.

        Args:
            models: of whose peers alone it is to tell, if there are any.
            most: words that it is to tell.

        Raises:
            ChannelClosed, DeadlineExceeded: it does not answer.
            RemoteProtocolError: its answer makes no sense.
        """
        held = self._directory.held(part, self._now(), models)
        keys = tuple(map(manifest_key, models))
        question = anti_entropy.encode(DirectoryQuery(part, held, keys, most))
        answer = await self._network.request(peer, DIRECTORY_PROTOCOL, question, deadline_s=DIAL_WITHIN_S)
        difference = anti_entropy.read_difference(answer)
        self._clock.heard(peer, difference.wall)
        back = await self._take_all(peer, difference.news)
        unsure = back + self._directory.among(difference.gone)
        await self._ask(unsure)

    async def _take_all(self, teller: PeerId, raws: Sequence[bytes]) -> list[Announcement]:
        """Take in what a peer tells of others, within bounds; those of them that we took for gone.

        What is left out, another comparison brings.
        """
        back: list[Announcement] = []
        for number, raw in enumerate(raws):
            if number % SLICE == SLICE - 1:
                await trio.lowlevel.checkpoint()
            if self._directory.holds(raw):
                continue
            if not self._checked.take(teller, self._now()):
                break
            if (returned := self._take(raw)) is not None:
                back.append(returned)
        return back

    async def tell(self, peer: PeerId, question: bytes) -> bytes:
        """Answer a question of a peer; over its rate with the time alone, whatever it asks.

        Raises:
            RemoteProtocolError: it is none.
        """
        if not self._answered.take(peer, self._now()):
            # Before it is read: a question names up to 4,096 peers.
            return anti_entropy.encode(DirectoryDifference([], {}, self._clock.own))
        asked = anti_entropy.read_query(question)
        raws = self._news(asked)[: asked.most]
        while sum(map(len, raws)) > ANSWER_LIMIT:
            # From the end: those whom we know ourselves come first.
            del raws[len(raws) * 9 // 10 :]
        return anti_entropy.encode(
            DirectoryDifference(raws, self._directory.gone(asked.held), self._clock.own)
        )

    def _news(self, asked: DirectoryQuery) -> list[bytes]:
        """What the asker lacks of a part of the directory; first those whom we know ourselves.

        Of a directory too long for one answer, others tell the rest. Some of those whom we know ourselves are
        told whatever the part: so its neighbours' neighbours soon hear of a newcomer, in any crowd.
        """
        models = [f"sha256:{key.hex()}" for key in dict.fromkeys(asked.models)]
        friends = self._directory.words_of_friends(self._now(), models)
        raws = self._directory.news(asked.part, asked.held, self._now(), models)
        self._random.shuffle(raws)
        raws.sort(key=lambda raw: raw not in friends)
        if asked.part.of > 1:
            others = [raw for raw in friends if not asked.part.has(friends[raw])]
            told = min(FRIENDS_TOLD, asked.most // 4, len(others))
            raws = [*self._random.sample(others, told), *raws]
        return raws
