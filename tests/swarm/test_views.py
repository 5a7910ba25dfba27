"""Which part of a large swarm is kept: of all its models something, and not what makes most identities."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from random import Random

import msgspec
import pytest

from shoal.errors import RemoteProtocolError
from shoal.swarm import gossip_rate
from shoal.swarm.announcement import MAX_LIFETIME_S, Announcement, Served
from shoal.swarm.clock import Clock
from shoal.swarm.directory import Directory
from shoal.swarm.taking_part.neighbours import CONNECTIONS_MOST, MODEL_CONNECTIONS, STRANGERS, whom_to_dial
from shoal.swarm.taking_part.speaker import TOPIC, Speaker
from shoal.swarm.views import rules
from shoal.swarm.views.census import take_census
from shoal.swarm.views.peer_sample import PeerSample, SecretRank, ViewedPeer, public_network
from shoal.swarm.views.placeless import LastWord, Placeless
from shoal.swarm.views.rules import MODELS_KNOWN, SwarmCount, ViewRules, is_partial
from shoal.swarm.views.size import SwarmSize
from shoal.testing.memory import World
from shoal.types import Digest, PeerAddress, PeerId

NOW = 1_000_000.0
OURS = Digest("sha256:" + "a" * 64)
OTHER = Digest("sha256:" + "b" * 64)
RULES = ViewRules(view_peers=64, drawn_peers=64, entry_peers=8)
RANK = SecretRank(b"nobody knows this")


def said(
    peer: str,
    host: str = "10.0.0.1",
    *,
    digest: str = OURS,
    start: int = 0,
    peers: int = 1,
    sequence: int = 1,
) -> Announcement:
    served = Served("tiny", digest, 32, 576, 2048, 49152, start, start + 4, "fp32", 4096, 4096, 0, 2.5)
    return Announcement(peer, sequence, NOW, NOW + 600, (f"/ip4/{host}/tcp/1",), (), served, "", peers)


def take(directory: Directory, *announcements: Announcement, now: float = NOW) -> None:
    for one in announcements:
        directory.take(one, f"{one.peer} {one.sequence}".encode(), now, now)


def kept(directory: Directory) -> set[str]:
    return {a.peer for a in directory.alive(NOW + 1)}


def a_directory(view_rules: ViewRules = RULES, *joined: Digest) -> Directory:
    directory = Directory()
    directory.keep_part(view_rules)
    directory.join(joined or (OURS,))
    return directory


# --- when a swarm is a large one


@pytest.mark.parametrize(
    ("before", "count", "large"),
    [
        (False, SwarmCount(319, 0, 319), False),
        (False, SwarmCount(320, 0, 320), True),
        (True, SwarmCount(30, 30, 240), True),
        (True, SwarmCount(30, 30, 239), False),
        (False, SwarmCount(120, 61, 300), True),  # who comes into a large swarm is not told of everybody
        (False, SwarmCount(120, 61, 239), False),
        (False, SwarmCount(120, 60, 300), False),  # not most say so
        (False, SwarmCount(50, 50, 10**6), False),  # some identities that say so are soon made
    ],
)
def test_a_swarm_is_large_from_some_number_on_and_does_not_change_with_each_peer(
    before: bool, count: SwarmCount, large: bool
) -> None:
    assert is_partial(ViewRules(), before, count) is large


def test_a_small_swarm_speaks_and_keeps_as_it_always_did() -> None:
    directory = Directory()
    size = SwarmSize(ViewRules(), directory, 10.0, 30.0, lambda: NOW)
    take(directory, *(said(f"p{number}", peers=0) for number in range(319)))
    size.look()
    assert (size.partial, size.overlapping, size.said(), size.joined) == (False, False, 0, frozenset())
    assert size.rest_s() == gossip_rate.refresh_s(10.0, 319)
    assert size.lifetime_s() == gossip_rate.lifetime_s(30.0, 319)
    assert len(directory) == 319
    assert not size.asks(OTHER)  # nothing is looked up


def test_a_swarm_that_has_grown_stays_large_for_a_while_and_is_whole_again_when_it_has_shrunk() -> None:
    now, directory = NOW, Directory()
    size = SwarmSize(ViewRules(), directory, 10.0, 30.0, lambda: now)
    size.serves = OURS
    take(directory, *(said(f"p{number}", start=number % 28, peers=0) for number in range(320)))
    size.look()
    assert size.partial
    assert size.overlapping  # to all others it is a small one
    assert len(directory) == 320  # of its own model nobody is forgotten
    size.look()
    assert size.of(OURS) == 320
    for number in range(300):  # be they kept or not
        take(directory, msgspec.structs.replace(said(f"p{number}", sequence=2), served=None))
    now += 50
    size.look()
    assert size.partial
    now += 50
    size.look()
    assert not size.partial


# --- how often who speaks where


def test_what_is_heard_does_not_grow_with_the_swarm() -> None:
    for peers in (20, 500, 1300):
        assert peers / rules.speaking_period_s(10.0, peers) == pytest.approx(rules.MODEL_STEADY / 10.0)
        assert 20 * peers / rules.swarm_period_s(10.0, peers, 20) == pytest.approx(rules.SWARM_STEADY / 10.0)
    assert 10_000 / rules.overlap_period_s(10.0, 10_000) < 3  # words a second, for releases from before


def test_a_word_lives_until_the_next_one_and_a_rare_model_stays_known() -> None:
    for peers in (1, 5, 100, 5000, 10**6):
        lives_s = rules.word_lifetime_s(30.0, peers, 20, 8)
        assert rules.speaking_period_s(10.0, peers) * 2 < lives_s <= MAX_LIFETIME_S
    # Of five peers that share their model's words on the swarm's topic, all are there to be asked.
    assert rules.word_lifetime_s(30.0, 5, 20, 8) > rules.swarm_period_s(10.0, 5, 20)


def test_who_hears_the_swarms_topic_alone_and_comes_later_hears_as_often_as_in_a_small_swarm() -> None:
    now, directory, network = NOW, Directory(), World().network()
    size = SwarmSize(ViewRules(), directory, 10.0, 30.0, lambda: now)
    size.serves = OURS
    speaker = Speaker(network, directory, size, Clock(), lambda: now, Random(1), str)
    take(directory, *(said(f"p{number}", digest=(OURS, OTHER)[number % 2]) for number in range(400)))
    size.look()
    assert size.swarm_rest_s() > 900
    assert speaker._topics(news=False) == [OURS]  # when its turn is, is drawn
    now += size.swarm_rest_s() * 0.2
    assert speaker._topics(news=False) == [OURS, TOPIC]
    assert speaker._topics(news=False) == [OURS]
    take(directory, said("of a release before", peers=0))
    size.look()
    assert size.overlapping and size.swarm_rest_s() < 300
    assert speaker._topics(news=False) == [OURS]  # not all at once
    now += size.swarm_rest_s() * 1.1
    assert speaker._topics(news=False) == [OURS, TOPIC]


def an_overlapping_size(directory: Directory, now: Callable[[], float]) -> SwarmSize:
    size = SwarmSize(ViewRules(), directory, 10.0, 30.0, now)
    size.serves = OURS
    take(directory, *(said(f"p{number}", start=number % 28) for number in range(400)))
    take(directory, said("of a release before", peers=0))
    size.look()
    assert size.overlapping
    return size


def test_news_come_to_the_swarms_topic_once_between_two_turns_however_much_there_is() -> None:
    now, network = NOW, World().network()
    size = an_overlapping_size(directory := Directory(), lambda: now)
    speaker = Speaker(network, directory, size, Clock(), lambda: now, Random(1), str)
    heard, rest_s = list[bool](), size.swarm_rest_s()
    for _ in range(1000):  # it has something new to say each hundredth of its rest
        heard.append(TOPIC in speaker._topics(news=True))
        now += rest_s / 100
    assert 10 < sum(heard) <= 20
    assert any(a and b for a, b in pairwise(heard))  # of what has come just after its turn all hear at once


def test_those_who_come_and_go_say_no_more_on_the_swarms_topic_than_those_who_stay() -> None:
    now, network = NOW, World().network()

    def clock() -> float:
        return now

    size = an_overlapping_size(directory := Directory(), clock)
    rest_s, heard = size.swarm_rest_s(), 0
    for number in range(300):
        newcomer = Speaker(network, directory, size, Clock(), clock, Random(number), str)
        for _ in range(4):  # it will serve, does so, moves, and goes
            heard += TOPIC in newcomer._topics(news=True)
            now += rest_s / 30
    assert heard < 300 * 4 / 30 * 2


def test_one_that_hears_the_swarms_topic_alone_is_believed_where_others_serve_its_model_too() -> None:
    size = a_size(Directory(), models=20, peers=20, made_up=20)
    take(size._directory, said("evil", digest="sha256:" + "e" * 64, peers=0))
    size.look()
    assert not size.overlapping
    take(size._directory, said("before", digest=f"sha256:{0:064x}", peers=0))
    size.look()
    assert size.overlapping


def a_size(directory: Directory, *, models: int, peers: int, made_up: int) -> SwarmSize:
    """Of a member that serves one of so many models with as many peers each."""
    size = SwarmSize(ViewRules(), directory, 10.0, 30.0, lambda: NOW)
    digests = [Digest(f"sha256:{number:064x}") for number in range(models + made_up)]
    size.serves = digests[0]
    directory.keep_part(ViewRules(), [digests[0]])
    for number in range(models * peers + made_up):
        digest = digests[number % models if number < models * peers else number - models * peers + models]
        take(
            directory, said(f"p{number}", f"20.{number // 200}.{number % 200}.1", digest=digest, peers=peers)
        )
    size.look()
    assert size.partial
    return size


def test_models_that_somebody_makes_up_do_not_silence_the_others() -> None:
    honest = a_size(Directory(), models=20, peers=20, made_up=0)
    among_many = a_size(Directory(), models=20, peers=20, made_up=200)
    assert honest.swarm_rest_s() == pytest.approx(20 * 20 / rules.SWARM_STEADY * 10.0)
    assert among_many.swarm_rest_s() < 3 * honest.swarm_rest_s()
    assert among_many.lifetime_s() < MAX_LIFETIME_S


def test_models_of_one_peer_each_are_known_and_say_no_more_than_a_small_swarm() -> None:
    size = a_size(Directory(), models=250, peers=1, made_up=0)
    assert 250 / size.swarm_rest_s() <= gossip_rate.STEADY_PEERS / 10.0
    assert size.lifetime_s() >= 2 * size.swarm_rest_s()


def test_a_topic_has_another_name_in_each_swarm_and_for_each_model() -> None:
    names = {rules.model_topic(swarm, "/t", digest) for swarm in (b"", b"x") for digest in (OURS, OTHER)}
    assert len(names) == 4
    assert all(len(name) < 40 and OURS[7:20] not in name for name in names)


# --- whom a view keeps


def viewed(name: str, part: int = 0, network: str = "") -> ViewedPeer:
    return ViewedPeer(PeerId(name), part, network, RANK(name))


def test_a_view_keeps_all_there_are_while_there_is_a_place() -> None:
    view = PeerSample(8, 8)
    assert [view.offer(viewed(f"p{number}")) for number in range(8)] == [[]] * 8
    assert len(view) == view.estimate == 8


def test_who_is_kept_no_more_is_told_once() -> None:
    view, kept = PeerSample(16, 16), set[PeerId]()
    for number in range(2000):
        one = viewed(f"p{number}", number % 8)
        for gone in view.offer(one):
            kept.remove(gone)
        if one.peer in view:
            kept.add(one.peer)
        assert kept == set(view)


def test_peers_of_a_rare_part_find_a_place_and_one_that_moves_keeps_its_own() -> None:
    view = PeerSample(32)
    for number in range(400):
        view.offer(viewed(f"p{number}"))
    for number in range(8):
        view.offer(viewed(f"rare{number}", part=5))
    assert {f"rare{number}" for number in range(8)} <= set(view)
    assert len(view) == 32
    view.update(viewed("rare1", part=0))
    assert PeerId("rare1") in view


def test_one_network_has_some_places_and_no_more() -> None:
    view = PeerSample(64)
    for number in range(64):
        view.offer(viewed(f"p{number}", part=number % 8, network=f"n{number}"))
    for number in range(1000):
        view.offer(viewed(f"evil{number}", part=number % 8, network="6.6.6.0/24"))
    assert sum(peer.startswith("evil") for peer in view) <= 5


@pytest.mark.parametrize("evil_parts", [1, 8])
def test_a_flood_from_everywhere_takes_no_place_of_the_older_half_nor_of_proven_peers(
    evil_parts: int,
) -> None:
    view, proven = PeerSample(64), {PeerId(f"honest{number}") for number in range(40, 60)}
    for number in range(64):
        view.offer(viewed(f"honest{number}", number % 8, f"h{number}"))
    for number in range(5000):
        view.offer(viewed(f"evil{number}", number % evil_parts, f"e{number}"), proven, ())
    honest = {f"honest{number}" for number in range(32)}
    assert honest | proven <= set(view)
    for number in range(5000):  # nor by coming again
        if PeerId(f"evil{number}") not in view:
            view.offer(viewed(f"evil{number}", number % evil_parts, f"e{number}"), proven, ())
    assert honest | proven <= set(view)


def test_connections_alone_fill_no_more_than_half_of_the_places() -> None:
    view = PeerSample(64)
    for number in range(64):
        view.offer(viewed(f"honest{number}", number % 8))
    evil = {PeerId(f"evil{number}") for number in range(300)}
    for number in range(300):
        view.offer(viewed(f"evil{number}", number % 8), (), evil)
    assert sum(peer.startswith("honest") for peer in view) >= 32


def test_who_is_drawn_is_drawn_by_chance_and_tells_how_many_there_are() -> None:
    estimates = []
    for seed in range(4):
        rank, view = SecretRank(b"%d" % seed), PeerSample(1, 256)
        for number in range(3000):
            for name in {f"p{number}", f"p{number // 20}"}:  # some speak twenty times as often
                if PeerId(name) not in view:
                    view.offer(ViewedPeer(PeerId(name), 0, "", rank(name)))
        assert len(view.drawn) == 256
        estimates.append(view.estimate)
    assert all(2300 < estimate < 3900 for estimate in estimates)
    assert 2700 < sum(estimates) / 4 < 3300


def test_what_is_drawn_stays_so_while_some_come_and_go() -> None:
    view, chance = PeerSample(1, 256), Random(1)
    there = [f"p{number}" for number in range(1000)]
    for name in there:
        view.offer(viewed(name))
    for number in range(1000, 4000):
        view.remove(PeerId(there.pop(chance.randrange(1000))))
        there.append(f"p{number}")
        for name in (there[-1], *chance.sample(there, 5)):  # somebody comes, some say the same again
            if PeerId(name) not in view:
                view.offer(viewed(name))
    assert 700 < view.estimate < 1400


@pytest.mark.parametrize(("before", "after"), [(1500, 1000), (5000, 500)])
def test_who_counts_by_those_drawn_counts_on_when_many_go_at_once_and_the_others_say_nothing_new(
    before: int, after: int
) -> None:
    view, there = PeerSample(256, 512), [f"p{number}" for number in range(before)]
    for name in there:
        view.offer(viewed(name))
    Random(1).shuffle(there)
    estimates = []
    for name in there[after:]:
        view.remove(PeerId(name))
    estimates.append(view.estimate)
    for name in there[:after]:  # in a while each of them speaks again
        if PeerId(name) in view:
            view.update(viewed(name))
        else:
            view.offer(viewed(name))
        estimates.append(view.estimate)
    assert 0.8 * after < min(estimates) <= max(estimates) < 1.2 * after
    assert len(view.drawn) > 512 / 2  # with those who were kept because they are unlike
    assert len(view) <= 256 + 512


def test_a_network_is_that_of_a_public_address() -> None:
    addresses = ("/ip4/192.168.1.7/tcp/1", "/ip4/8.8.4.4/tcp/1", "/ip4/9.9.9.9/tcp/1")
    assert public_network(PeerAddress(PeerId("a"), addresses)) == "8.8.4.0/24"
    assert public_network(PeerAddress(PeerId("a"), addresses[:1])) == ""
    assert public_network(PeerAddress(PeerId("a"), (), ("/ip6/2a00:1450::3/tcp/1",))) == "2a00:1450::/48"


# --- a directory that keeps a part


def test_of_ones_own_models_much_is_kept_and_of_others_a_little() -> None:
    directory = a_directory()
    for digest in (OURS, OTHER):
        take(
            directory,
            *(said(f"{digest[7]}{number}", digest=digest, start=number % 28) for number in range(500)),
        )
    ours = list(directory.serving(OURS, NOW))
    assert 64 <= len(ours) <= 128
    assert len(list(directory.serving(OTHER, NOW))) == 8
    assert len(list(directory.drawn(OURS, NOW))) <= 64
    assert len({a.served.start for a in ours if a.served}) > 20
    directory.join((OTHER,))
    assert len(list(directory.serving(OURS, NOW))) == 8
    take(directory, *(said(f"b{number}", digest=OTHER, sequence=2) for number in range(500)))
    assert 64 <= len(list(directory.serving(OTHER, NOW))) <= 128


def test_ones_own_word_is_kept_and_one_of_use_is_told_from_all() -> None:
    directory = a_directory()
    directory.own = PeerId("me")
    take(directory, *(said(f"p{number}") for number in range(200)))
    take(directory, said("me"))
    assert directory.raw(PeerId("me"))
    assert directory.take(said("late"), b"", NOW, NOW) is ("late" in kept(directory))


def test_models_that_nobody_serves_push_out_no_model_that_was_there_before() -> None:
    directory = a_directory()
    honest = [f"sha256:{number:064x}" for number in range(20)]
    take(directory, said("ours"), *(said(f"honest{digest[-3:]}", digest=digest) for digest in honest))
    take(directory, *(said(f"evil{number}", digest=f"sha256:{number:064x}") for number in range(1000, 1600)))
    assert {"ours", *(f"honest{digest[-3:]}" for digest in honest)} <= kept(directory)
    assert len(directory) == MODELS_KNOWN


def test_a_majority_of_identities_does_not_decide_whom_a_member_knows() -> None:
    """Three times as many as are honest, in every part and network, of ours and of another model."""
    directory = a_directory(ViewRules())
    for number in range(300):
        host, start = f"20.{number % 200}.{number // 200}.1", number % 28
        take(directory, said(f"honest{number}", host, start=start), now=NOW)
        take(directory, said(f"other{number}", host, digest=OTHER, start=start), now=NOW)
    for number in range(1000):
        host, start = f"30.{number % 200}.{number // 200}.1", number % 28
        take(directory, said(f"evil{number}", host, start=start), now=NOW + 1)
        take(directory, said(f"evil other{number}", host, digest=OTHER, start=start), now=NOW + 1)
    names = kept(directory)
    assert sum(name.startswith("honest") for name in names) >= 128
    assert sum(name.startswith("other") for name in names) >= 4
    assert len(names) <= 256 + 512 + 8
    honest = {
        a.served.start for a in directory.serving(OURS, NOW) if a.peer.startswith("honest") and a.served
    }
    assert len(honest) == 28  # a route over them is there


def test_who_finds_no_place_speaks_no_more_often_and_no_later_than_others() -> None:
    directory, every_s = a_directory(), 10.0
    take(directory, *(said(f"b{number}", digest=OTHER) for number in range(500)))
    placeless = next(name for name in (f"b{number}" for number in range(500)) if name not in kept(directory))

    def word(sequence: int, at: float) -> tuple[bool, bool]:
        one, raw = said(placeless, digest=OTHER, sequence=sequence), b"%d" % sequence
        heard = directory.may_speak(one, raw, at, every_s)
        return heard, heard and directory.take(one, raw, at, NOW, every_s)

    assert [word(sequence, NOW)[0] for sequence in range(2, 8)] == [True] * 4 + [False] * 2
    assert word(5, NOW) == (True, False)  # the same again: nothing of its rate is used up
    assert word(6, NOW + 10) == (True, False)
    with pytest.raises(RemoteProtocolError, match="older"):
        directory.take(said(placeless, digest=OTHER, sequence=5), b"", NOW + 20, NOW)
    directory.join((OURS, OTHER))
    assert word(6, NOW + 20) == (True, True)  # now that there is a place, it is taken


def test_of_those_who_find_no_place_so_many_are_remembered_until_their_words_are_over() -> None:
    placeless = Placeless(limit=3)
    for number in range(5):
        placeless.note(PeerId(f"p{number}"), LastWord(7, NOW + number, 0.0))
    assert [placeless.sequence(PeerId(f"p{number}")) for number in range(5)] == [-1, -1, 7, 7, 7]
    placeless.expire(NOW + 3 + MAX_LIFETIME_S)
    assert len(placeless) == 1


# --- how many there are


def test_a_census_believes_what_others_say_of_their_models_within_bounds() -> None:
    directory = a_directory()
    take(directory, *(said(f"p{number}", start=number % 28) for number in range(40)))
    take(directory, *(said(f"q{number}", digest=OTHER, peers=700, start=4 * number) for number in range(4)))
    liar = "sha256:" + "c" * 64
    take(
        directory,
        said("liar", digest=liar, peers=1 << 20),
        said("before", digest=OTHER, peers=0),
    )
    found = take_census(directory.alive(NOW), directory.view, NOW)
    assert found.of(OURS) == 40
    assert found.of(OTHER) == 700
    assert found.of(liar) == rules.BELIEVED_EACH
    assert found.models == 2  # of the others a single peer is known
    assert found.overlapping  # one hears the swarm's topic alone
    assert found.count == SwarmCount(46, 45, 40 + 700 + 256)


def test_a_large_swarm_that_loses_a_region_is_taken_for_as_many_as_are_left() -> None:
    directory = a_directory(ViewRules())
    peers = [said(f"p{number}", start=number % 28) for number in range(1500)]
    take(directory, *peers)
    for lost in peers[1000:]:
        directory.drop(PeerId(lost.peer), NOW)
    found = take_census(directory.alive(NOW), directory.view, NOW)
    assert 850 < found.of(OURS) < 1150
    assert 850 < found.count.estimated < 1150


def test_a_word_of_a_release_before_says_nothing_of_its_models_peers() -> None:
    before = msgspec.msgpack.encode(said("a"))
    fields = msgspec.msgpack.decode(before)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(fields[:8]), type=Announcement).peers == 0
    assert fields[8] == 1  # at the end, where those who do not know it pass over it


# --- whom it is connected to


def test_most_connections_are_with_peers_of_ones_models_and_a_few_with_others() -> None:
    models = [[PeerId(f"m{model} {number}") for number in range(50)] for model in range(6)]
    others = [PeerId(f"o{number}") for number in range(50)]
    one = whom_to_dial(models[:1], others, (), Random(1))
    assert sum(peer.startswith("m0") for peer in one) == MODEL_CONNECTIONS
    assert sum(peer.startswith("o") for peer in one) == STRANGERS
    assert len(whom_to_dial(models, others, (), Random(1))) <= CONNECTIONS_MOST + STRANGERS
    assert whom_to_dial(models[:1], others, [*models[0][:6], *others[:2]], Random(1)) == []
    assert whom_to_dial([models[0][:1]], [], (), Random(1)) == [PeerId("m0 0")]
