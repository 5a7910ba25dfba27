"""Models that look at pictures, over a swarm: the tokens of transformers, whichever hop is lost."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
import trio
import trio.testing

from shoal.client.generate import generate
from shoal.client.sampling import Sampling
from shoal.client.speculation import gain, sources, speculation
from shoal.client.speculation.controller import WindowPlan
from shoal.client.speculation.drafters import Guess
from shoal.client.speculation.sources import Sources
from shoal.client.timing import Timing
from shoal.client.vision import look
from shoal.client.vision.picture_files import MAX_FILE, open_picture
from shoal.errors import NotAllowed, UsageError
from shoal.models.checkpoint.checkpoint import open_checkpoint, tower_bytes
from shoal.models.checkpoint.multimodal import is_of_language
from shoal.models.text.prompt import ChatPrompt, encode_prompt
from shoal.models.vision import pixels
from shoal.testing.seeing import ROW, picture, whole_answer, write_seeing
from shoal.testing.swarm import memory_swarm
from shoal.types import Span
from shoal.wire.proofs import Prove

HALVES = [Span(0, 3), Span(3, 6)]
TOKENS = 12
ASKED = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is this?"}]}]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    root = tmp_path_factory.mktemp("seeing")
    return lambda kind: root / kind if (root / kind).exists() else write_seeing(root / kind, kind)


async def answer_of(client, folder, images, messages=ASKED, **options):
    answer = client.generate(
        str(folder), messages=messages, images=images, **{"max_tokens": TOKENS, **options}
    )
    async for _ in answer:
        pass
    return answer


@pytest.mark.parametrize("kind", ["llava", "gemma3", "qwen2_vl"])
async def test_two_hops_give_the_tokens_of_the_whole_model(tmp_path, folder_of, kind, autojump_clock):
    folder = folder_of(kind)
    async with memory_swarm(tmp_path, folder, HALVES) as swarm:
        one, other = [await answer_of(swarm.client, folder, [picture(seed)]) for seed in (1, 2)]
    for seed, answer in ((1, one), (2, other)):
        assert answer.token_ids == whole_answer(folder, answer.prompt_token_ids, [picture(seed)], TOKENS)
    assert one.prompt_token_ids == other.prompt_token_ids
    assert one.token_ids != other.token_ids  # the pictures are looked at


@pytest.mark.parametrize(("kind", "place"), [("llava", 1), ("gemma3", 0), ("qwen2_vl", 1)])
async def test_a_hop_that_is_killed_changes_no_token(tmp_path, folder_of, kind, place, autojump_clock):
    folder, images = folder_of(kind), [picture(3, (140, 84)), picture(4, (60, 170))]
    said = [ASKED[0], {"role": "assistant", "content": "a sea"}, ASKED[0]]
    async with memory_swarm(tmp_path, folder, [*HALVES, *HALVES]) as swarm:
        answer = swarm.client.generate(str(folder), messages=said, images=images, max_tokens=TOKENS)
        seen = 0
        async for _ in answer:
            seen += 1
            if seen == 5:
                peer = answer.route[place].peer
                swarm.kill(next(i for i, network in enumerate(swarm.networks) if network.peer == peer))
    assert len(answer.reroutes) == 1
    assert answer.token_ids == whole_answer(folder, answer.prompt_token_ids, images, TOKENS)


@pytest.mark.parametrize("ends", [{}, {"private_ends": "1:1"}], ids=str)
async def test_tokens_that_are_guessed_behind_pictures_stand_where_they_would(
    tmp_path, folder_of, monkeypatch, ends, autojump_clock
):
    folder, images = folder_of("qwen2_vl"), [picture(3, (140, 84))]
    known, told = [], []

    async def guess(self, ahead=(), count=1, **_):
        return [Guess(token, "ngram") for token in known[len(told) + len(ahead) :][:count]]

    async with memory_swarm(tmp_path, folder, HALVES, format="bf16", **ends) as swarm:
        plain = await answer_of(swarm.client, folder, images, speculate=False, max_tokens=20)
        known += [*plain.prompt_token_ids, *plain.token_ids]
        monkeypatch.setattr(sources, "choose_plan", lambda _: WindowPlan(3, 2))
        monkeypatch.setattr(speculation, "LEAST_LIKELY", 0.0)
        monkeypatch.setattr(gain, "TRIAL", 1 << 30)
        monkeypatch.setattr(Sources, "guess", guess)
        monkeypatch.setattr(Sources, "candidates", guess)
        monkeypatch.setattr(Sources, "learn", lambda _, token_ids: told.extend(token_ids))
        ahead = await answer_of(swarm.client, folder, images, max_tokens=20)
    assert ahead.timing.speculation.accepted > 0
    assert ahead.token_ids == plain.token_ids


@pytest.mark.parametrize(("kind", "rows"), [("gemma3", 4), ("qwen2_5_vl", 6)])
async def test_pieces_cut_no_picture_whose_rows_see_each_other_nor_do_blocks_of_the_client(
    tmp_path, folder_of, kind, rows, autojump_clock
):
    folder = folder_of(kind)
    async with memory_swarm(tmp_path, folder, [Span(0, 6)], private_ends="2:1", prefill_chunk=3) as swarm:
        answer = await answer_of(swarm.client, folder, [picture(6)])
    assert answer.prompt_token_ids.count(ROW) == rows
    assert answer.token_ids == whole_answer(folder, answer.prompt_token_ids, [picture(6)], TOKENS)


async def test_what_is_no_picture_or_too_much_is_refused(tmp_path, folder_of, autojump_clock):
    folder = folder_of("llava")
    broken = picture(size=(40, 40))[:90]
    async with memory_swarm(tmp_path, folder, HALVES, format="int8", images=2, image_pixels=4000) as swarm:
        for images, told in [
            ([picture(), picture(), picture()], r"3 images are given, and 2 are the most .*\(images\)"),
            ([picture(size=(80, 60))], "image 0 has 80×60 pixels, and 4000 are the most"),
            ([broken], "image 0 cannot be read as a picture"),
            ([picture(size=(40, 40)), b"GIF89a"], "image 1 cannot be read as a picture"),
            ([picture(size=(40, 40), format="BMP")], "cannot be read as a picture"),
            ([tmp_path / "nowhere.png"], "nowhere.png cannot be read as a picture"),
            ([picture(size=(40, 40))] * 2, "shows 1 pictures, and 2 are given"),
        ]:
            with pytest.raises(UsageError, match=told):
                await answer_of(swarm.client, folder, images)
        with pytest.raises(UsageError, match="no text, and no picture is given for it"):
            await answer_of(swarm.client, folder, [])
        said = [{"role": "user", "content": "what is <image> this?"}]
        answer = await answer_of(swarm.client, folder, [picture(size=(40, 40), format="JPEG")], said)
        assert answer.prompt_token_ids.count(ROW) == 16, "the user's own words show no picture"


async def test_a_picture_of_more_rows_than_a_tower_looks_at_in_time_is_refused(
    tmp_path, folder_of, monkeypatch, autojump_clock
):
    monkeypatch.setattr("shoal.client.vision.look.MOST_GRID_ROWS", 9)
    async with memory_swarm(tmp_path, folder_of("qwen2_vl"), []) as swarm:
        with pytest.raises(UsageError, match=r"would take \d\d tokens, and 9 are the most of an image"):
            await answer_of(swarm.client, folder_of("qwen2_vl"), [picture(3, (140, 84))])


def test_a_jpeg_with_scans_without_end_is_refused(tmp_path):
    few = picture(size=(40, 40), format="JPEG")
    many = few[:-2] + few[few.index(b"\xff\xda") :][:-2] * 100 + few[-2:]
    assert open_picture(few, "few", 4000, "vision").size == (40, 40)
    file = tmp_path / "many.jpg"
    file.write_bytes(many)
    for source in (many, file):
        with pytest.raises(UsageError, match="many has too many scans"):
            open_picture(source, "many", 4000, "vision")
    with file.open("r+b") as opened:
        opened.truncate(MAX_FILE + 1)
    with pytest.raises(UsageError, match="has more than"):
        open_picture(file, "large", 4000, "vision")


async def test_whoever_has_nothing_of_a_model_fetches_its_tower_and_its_ends_alone(
    tmp_path, folder_of, autojump_clock
):
    folder = folder_of("llava")
    async with memory_swarm(tmp_path / "home", folder, HALVES, share="on") as swarm:
        client = await swarm.add_client(tmp_path / "other")
        answer = await answer_of(client, swarm.model.digest, [picture(1)])
        local = await client.resolve(swarm.model.digest)
        checkpoint = open_checkpoint(local.path)
        here = {entry.name for entry in checkpoint.stored if entry.file.exists()}
    assert answer.token_ids == whole_answer(folder, answer.prompt_token_ids, [picture(1)], TOKENS)
    assert answer.tower_bytes == tower_bytes(folder)
    assert not [name for name in here if ".layers." in name and is_of_language(name)]
    assert {entry.name for entry in checkpoint.tower.tensors.values()} <= here


async def test_a_picture_that_waits_holds_its_file_alone_and_is_the_one_that_was_read(
    tmp_path, folder_of, autojump_clock
):
    file = tmp_path / "one.png"
    file.write_bytes(picture(1))
    async with memory_swarm(tmp_path, folder_of("llava"), []) as swarm:
        looking, local = swarm.client.looking, await swarm.client.resolve(str(folder_of("llava")))
        read = await looking.read(local, [picture(1), file])
        assert [one.file for one in read] == [picture(1), file]
        assert not [held for one in read for held in astuple(one) if isinstance(held, np.ndarray)]
        placed = await looking.placed(local, read, [0, 40])
        file.write_bytes(picture(2))
        with pytest.raises(UsageError, match=r"one\.png has changed meanwhile"):
            await looking.look(local, read[1:], placed[1:])
        one, kept = await looking.look(local, read, placed)
    assert np.array_equal(one.rows, kept.rows), "the rows of these pixels are kept"


async def test_pixels_are_made_of_a_file_that_is_new_and_of_no_other(
    tmp_path, folder_of, autojump_clock, monkeypatch
):
    made, honest = [], pixels.picture_pixels

    def counted(opened, settings):
        made.append(opened.size)
        return honest(opened, settings)

    monkeypatch.setattr(pixels, "picture_pixels", counted)
    monkeypatch.setattr(look, "KEPT_DIGESTS", 2)
    async with memory_swarm(tmp_path, folder_of("llava"), []) as swarm:
        looking, local = swarm.client.looking, await swarm.client.resolve(str(folder_of("llava")))
        (first,) = await looking.read(local, [picture(1)])
        again, same = await looking.read(local, [picture(1), picture(1)])
        assert first.digest == again.digest == same.digest and len(made) == 1
        other, _ = await looking.read(local, [picture(2), picture(3)])
        assert other.digest != first.digest and len(made) == 3
        assert await looking.read(local, [picture(2)]) == [other] and len(made) == 3
        await looking.read(local, [picture(1)])  # which had to make room
        assert len(made) == 4


async def test_towers_in_memory_are_bounded_and_none_waits_for_the_fetch_of_another(
    tmp_path, folder_of, monkeypatch
):
    async with memory_swarm(tmp_path, folder_of("llava"), []) as swarm:
        client = swarm.client
        looking = client.looking
        slow, quick = [await client.resolve(str(folder_of(kind))) for kind in ("llava", "gemma3")]
        loaded, arrived, load = [], trio.Event(), looking._loaded

        async def fetched(local):
            loaded.append(local.name)
            if local is slow:
                await arrived.wait()
            return await load(local)

        async def rows(local):
            pictures = await looking.read(local, [picture(1)])
            await looking.look(local, pictures, await looking.placed(local, pictures, [0]))

        monkeypatch.setattr(looking, "_loaded", fetched)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rows, slow)
            nursery.start_soon(rows, slow)
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(60):
                await rows(quick)
            arrived.set()
        assert sorted(loaded) == ["gemma3", "llava"], "and each is loaded once"
        held = looking.tower_bytes(slow) + looking.tower_bytes(quick)
        monkeypatch.setattr(look, "TOWER_BYTES", held)
        await looking._tower(quick)
        assert looking.tower_bytes(slow) > 0
        monkeypatch.setattr(look, "TOWER_BYTES", held - 1)
        await looking._tower(quick)
        assert looking.tower_bytes(slow) == 0 < looking.tower_bytes(quick)
        assert len(looking._loading) == 0


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl"])
async def test_the_next_turn_goes_on_where_the_same_picture_stands(tmp_path, folder_of, kind, autojump_clock):
    folder = folder_of(kind)
    async with memory_swarm(tmp_path, folder, HALVES) as swarm:
        client = swarm.client
        local = await client.resolve(str(folder))
        codec = await client.codec(local, needed=True)
        one, other = await client.looking.read(local, [picture(1), picture(2)])
        shown = await client.looking.shown(local, codec, [one])
        made = encode_prompt(codec, ChatPrompt(ASKED), pictures=shown)
        begin = made.pictures[0]
        async with client.session(str(folder), tokens=200, loose=kind != "llava") as session:
            places = [await client.looking.placed(local, [image], made.pictures) for image in (one, other)]
            seen = await client.looking.look(local, [one], places[0])
            deltas = generate(session, made.token_ids, None, sampling=Sampling(), max_tokens=4, pictures=seen)
            async for _ in deltas:
                pass
            longer = [*made.token_ids, 5, 6]
            assert session.reusable(longer, places[0]) == len(made.token_ids)
            assert session.reusable(longer, places[1]) == begin
            assert session.reusable(longer) == begin
            timing, found = Timing(), []
            again = generate(
                session, longer, None, sampling=Sampling(), max_tokens=4, pictures=seen, timing=timing
            )
            async for delta in again:
                found += delta.token_ids
            assert timing.reused == len(made.token_ids)
            assert found == whole_answer(folder, longer, [picture(1)], 4)


@pytest.mark.parametrize("kind", ["gemma3", "qwen2_vl"])
async def test_a_session_whose_steps_say_more_than_receipts_promises_no_bits_and_proves_nothing(
    tmp_path, folder_of, kind, autojump_clock
):
    folder = folder_of(kind)
    async with memory_swarm(tmp_path, folder, HALVES, format="int8") as swarm:
        client = swarm.client
        answer = await answer_of(client, folder, [picture(1)], protect="proved")
        assert len(answer.token_ids) == TOKENS
        found = answer.protection
        assert (found.level, found.audits) == ("fast", ())
        assert any("steps say of its images what no receipt does" in fault for fault in found.faults)
        plain = await answer_of(client, folder, [], [{"role": "user", "content": "what?"}], protect="proved")
        assert plain.protection.level == "proved"
        local = await client.resolve(str(folder))
        codec = await client.codec(local, needed=True)
        pictures = await client.looking.read(local, [picture(1)])
        made = encode_prompt(
            codec, ChatPrompt(ASKED), pictures=await client.looking.shown(local, codec, pictures)
        )
        placed = await client.looking.placed(local, pictures, made.pictures)
        seen = await client.looking.look(local, pictures, placed)
        for loose in (True, False):
            async with client.session(str(folder), tokens=200, loose=loose) as session:
                assert session.ring.numerics.exact is not loose
                deltas = generate(
                    session, made.token_ids, None, sampling=Sampling(), max_tokens=2, pictures=seen
                )
                if loose:
                    assert [delta async for delta in deltas]
                    assert await refusal_of_a_proof(session) == (
                        "there are no proofs for sessions whose steps say of pictures what no receipt does"
                    )
                    continue
                with pytest.raises(UsageError, match="this session promises the same bits"):
                    await anext(deltas)


async def refusal_of_a_proof(session):
    """What the first hop says that is asked for one, however the client's own code would not ask."""
    hop = session.ring.places.hops[0]
    question = Prove(session.ring.session, bytes(16), 1, 0, 1)
    with pytest.raises(NotAllowed) as refused:
        await hop.prove(question, b"\0", 5.0)
    return refused.value.message
