"""Which version of the protocol two ends of a channel speak, so that unlike releases serve each other.

Both ends say in their hello from which version on and up to which they speak, and then speak the newest that
both know. What that version does not know is not sent: whoever asked gets an error and asks another peer. So
nobody has to upgrade on the same day. ``CONTRIBUTING.md`` says how a message or a field is added and retired.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from shoal.errors import OutdatedPeer, OutdatedRelease
from shoal.types import Codec
from shoal.wire.cache_names import KeepCache
from shoal.wire.federating import (
    FederatedStatement,
    RunWanted,
    SecretList,
    SecretShare,
    SecretShown,
    StateGiven,
    StateNotGiven,
    StateWanted,
    UpdatePart,
)
from shoal.wire.inferring import InferEncrypted, InferredEncrypted
from shoal.wire.messages import (
    AGENT,
    NEWEST_VERSION,
    OLDEST_VERSION,
    Attest,
    Attested,
    GetReceipts,
    Hello,
    Message,
    Open,
    Opened,
    Reveal,
    Revealed,
    Step,
)
from shoal.wire.paying import Acknowledged, Paid, PaymentDue
from shoal.wire.proofs import Prove, Proved
from shoal.wire.training import NotTrained, Train, Trained
from shoal.wire.turn import TraceTurn

_AGENT = re.compile(r"shoal/(\d{1,6})\.(\d{1,6})")
LEAST_PEERS = 2
"""One peer alone sends nobody to upgrade."""
SINCE: dict[type[Message], int] = {
    Reveal: 8,
    Revealed: 8,
    Attest: 8,
    Attested: 8,
    Train: 9,
    Trained: 9,
    NotTrained: 9,
    Prove: 9,
    Proved: 9,
    TraceTurn: 9,
    KeepCache: 9,
    Acknowledged: 9,
    PaymentDue: 9,
    Paid: 9,
    RunWanted: 9,
    FederatedStatement: 9,
    UpdatePart: 9,
    StateWanted: 9,
    StateGiven: 9,
    StateNotGiven: 9,
    SecretShare: 9,
    SecretList: 9,
    SecretShown: 9,
    InferEncrypted: 9,
    InferredEncrypted: 9,
}
"""The version that first knew a message; of all others ``OLDEST_VERSION`` knows them."""
CODEC_SINCE: dict[Codec, int] = {"int6": 9}
"""The same of a codec."""


def our_hello(channel: bytes = b"") -> Hello:
    """What this end of a channel says first; ``channel`` as :attr:`Hello.channel`."""
    return Hello(OLDEST_VERSION, AGENT, channel, NEWEST_VERSION)


def spoken(hello: Hello) -> int:
    """The version that is spoken with who says this hello.

    Raises:
        OutdatedPeer: the peer's release is too old for this one.
        OutdatedRelease: this one is too old for the peer's.
    """
    newest = max(hello.newest, hello.oldest)  # before version 9 there was one number
    if newest < OLDEST_VERSION:
        raise OutdatedPeer(
            f"the peer's release is too old: it speaks version {newest} of the protocol, this machine's "
            f"{OLDEST_VERSION} to {NEWEST_VERSION}. Its owner must upgrade it"
        )
    if hello.oldest > NEWEST_VERSION:
        raise OutdatedRelease(
            f"this machine's release is too old: it speaks version {OLDEST_VERSION} to {NEWEST_VERSION} of "
            f"the protocol, the peer {hello.oldest} to {newest}. Upgrade Shoal here"
        )
    return min(newest, NEWEST_VERSION)


def check_known(message: Message, version: int) -> None:
    """That a peer that speaks ``version`` knows what a message asks for.

    Raises:
        OutdatedPeer: it does not; the message is not to be sent.
    """
    # Between ends of one release, which is the rule, this costs a comparison.
    if version < NEWEST_VERSION and (since := _since(message)) > version:
        raise OutdatedPeer(
            f"the peer's release does not know what is asked of it ({type(message).__name__}): it speaks "
            f"version {version} of the protocol, and that came with {since}. Ask another peer, or have its "
            "owner upgrade"
        )


def knows_codec(codec: Codec, version: int) -> bool:
    """Whether who speaks ``version`` can be sent hidden states in ``codec``."""
    return version >= CODEC_SINCE.get(codec, OLDEST_VERSION)


def known_codec(codec: Codec, version: int) -> Codec:
    """What is asked for in place of ``codec`` where ``version`` is spoken: the next that is more exact."""
    return codec if knows_codec(codec, version) else "int8"


def check_codec(codec: Codec, version: int) -> None:
    """That who speaks ``version`` can take part in a session in ``codec``.

    Raises:
        OutdatedPeer: it cannot.
    """
    if not knows_codec(codec, version):
        raise OutdatedPeer(
            f"the peer's release does not know hidden states in {codec}: it speaks version {version} of the "
            f"protocol, and that came with {CODEC_SINCE[codec]}",
            check="have its owner upgrade, or set --wire to int8, which all know",
        )


def _since(message: Message) -> int:
    # Words and fields without which the message means something else.
    if isinstance(message, Opened):
        return max(CODEC_SINCE.get(codec, OLDEST_VERSION) for codec in (message.codec, message.held_codec))
    if isinstance(message, GetReceipts) and message.commit:
        return 8
    if isinstance(message, Open) and message.adapter:
        return 9
    if isinstance(message, Step):
        seeing = 9 if message.mutual or message.grids else OLDEST_VERSION
        return max(seeing, CODEC_SINCE.get(message.hidden.codec, OLDEST_VERSION))
    return SINCE.get(type(message), OLDEST_VERSION)


def releases(agents: Iterable[str]) -> dict[str, int]:
    """How many peers run each release, by the name that they announce, the newest first."""
    counts = Counter(agents)
    return {agent: counts[agent] for agent in sorted(counts, key=lambda a: (_number(a), a), reverse=True)}


def behind(own: str, others: Iterable[str]) -> str:
    """That most other peers run a newer release, in a sentence; empty where they do not.

    Args:
        own: this machine's, as ``AGENT`` is written.
        others: what peers announce.
    """
    heard = list(others)
    newer = [number for number in map(_number, heard) if number > _number(own)]
    if len(newer) < LEAST_PEERS or len(newer) * 2 <= len(heard):
        return ""
    major, minor = Counter(newer).most_common(1)[0][0]
    share = f"{len(newer)} of {len(heard)} peers"
    return f"this machine runs {own}, {share} a newer release, such as {major}.{minor}: upgrade it"


def _number(agent: str) -> tuple[int, int]:
    found = _AGENT.match(agent)
    return (int(found[1]), int(found[2])) if found else (0, 0)
