"""Samples of many prompts: each once, whatever happens, with all that it takes to have it again."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace

import msgspec
import pytest
import trio

from shoal.client.rollouts import run as running
from shoal.client.rollouts.run import RolloutOptions
from shoal.client.rollouts.samples import read_samples
from shoal.client.sampling import Sampling, sample_seed
from shoal.errors import Busy, NoCoverage, UsageError
from shoal.node.sessions import Sessions
from shoal.trust.answer import read_kept_answer
from shoal.types import Span

from .conftest import PROMPT, THIRDS, memory_swarm

OPTIONS = RolloutOptions(samples=4, max_tokens=4, seed=7)
PROMPTS = [{"prompt": "Hello", "id": "first"}, {"token_ids": PROMPT}, {"prompt": "The sea"}]


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def samples(path):
    return {(one.prompt, one.sample): one for _, one in read_samples(path)}


async def test_every_sample_is_there_once_and_is_what_its_seed_gives_alone(home, tmp_path, checkpoint):
    told = []
    async with memory_swarm(home, checkpoint, THIRDS) as swarm:
        done = await swarm.client.rollouts(
            str(checkpoint), PROMPTS, tmp_path / "out.jsonl", options=OPTIONS, told=told.append
        )
        found = samples(tmp_path / "out.jsonl")
        assert set(found) == {(line, n) for line in (1, 2, 3) for n in range(4)}
        assert (done.made, done.samples) == (told[-1].made, told[-1].samples) == (12, 12)
        assert done.tokens == sum(len(one.token_ids) for one in found.values())
        local = await swarm.client.resolve(str(checkpoint))
        for (line, number), one in found.items():
            assert (one.digest, one.adapter, one.seed) == (local.digest, None, sample_seed(7, line, number))
            assert len(one.logprobs) == len(one.token_ids)
            assert one.id == ("first" if line == 1 else None)
        one = found[2, 3]
        sampling = one.sampling | {"seed": one.seed, "logit_bias": {}, "top_logprobs": 0}
        answer = swarm.client.generate(
            str(checkpoint), one.prompt_token_ids, max_tokens=one.max_tokens, **sampling
        )
        deltas = [delta async for delta in answer]
    assert answer.token_ids == one.token_ids
    assert [delta.score.logprob for delta in deltas] == pytest.approx(one.logprobs, rel=1e-5)
    assert (answer.text, answer.finish_reason) == (one.text, one.finish_reason)
    assert len({tuple(found[1, n].token_ids) for n in range(4)}) > 1


async def test_a_run_that_was_killed_in_the_middle_makes_what_is_missing_and_nothing_twice(
    home, tmp_path, checkpoint
):
    out = tmp_path / "out.jsonl"
    async with memory_swarm(home, checkpoint, THIRDS) as swarm:
        make = swarm.client.rollouts
        await make(str(checkpoint), PROMPTS, tmp_path / "whole.jsonl", options=OPTIONS)
        with trio.CancelScope() as scope:
            await make(
                str(checkpoint),
                PROMPTS,
                out,
                options=replace(OPTIONS, at_once=2),  # so that they are not all written together
                told=lambda done: scope.cancel() if done.made >= 5 else None,
            )
        assert scope.cancelled_caught
        before = out.read_bytes()
        assert 5 <= before.count(b"\n") < 12
        # A kill in the midst of a line: its beginning is there.
        out.write_bytes(before + b'{"prompt":1,"sample":3,"se')
        done = await make(str(checkpoint), PROMPTS, out, options=OPTIONS)
        assert done.made == 12
        assert out.read_bytes().startswith(before)
        assert Counter((one.prompt, one.sample) for _, one in read_samples(out)).most_common(1)[0][1] == 1
        whole, again = samples(tmp_path / "whole.jsonl"), samples(out)
        assert again.keys() == whole.keys()
        for key, one in again.items():
            # In the last bits it matters whether a session has the prompt from a sample before.
            assert one.logprobs == pytest.approx(whole[key].logprobs, rel=1e-5)
            assert msgspec.structs.replace(one, logprobs=whole[key].logprobs) == whole[key]
        complete = out.read_bytes()
        assert (await make(str(checkpoint), PROMPTS, out, options=OPTIONS)).tokens == 0
        assert out.read_bytes() == complete


async def test_what_is_of_another_run_or_no_sample_is_refused_by_its_line(home, tmp_path, checkpoint):
    out = tmp_path / "out.jsonl"
    async with memory_swarm(home, checkpoint, [Span(0, 6)]) as swarm:

        async def make(prompts=PROMPTS[:1], **options):
            given = RolloutOptions(**{"samples": 2, "max_tokens": 3} | options)
            return await swarm.client.rollouts(str(checkpoint), prompts, out, options=given)

        await make()
        with pytest.raises(UsageError, match=r"line 1 is a sample of another run: max_tokens differ"):
            await make(max_tokens=4)
        with pytest.raises(UsageError, match="sampling differ"):
            await make(sampling=Sampling(temperature=0.5))
        with pytest.raises(UsageError, match="seed differ"):
            await make(seed=1)
        with pytest.raises(UsageError, match="prompt differ"):
            await make([{"prompt": "Other"}])
        assert (await make(samples=3)).made == 3  # more of the same
        lines = out.read_bytes().splitlines(keepends=True)
        out.write_bytes(b"".join([*lines, lines[0]]))
        with pytest.raises(UsageError, match=r"line 4: sample \d of prompt 1 is there already"):
            await make()
        out.write_bytes(b"".join([lines[0], b"{}\n", *lines[1:]]))
        with pytest.raises(UsageError, match="line 2 is no sample"):
            await make()


async def test_the_hops_sign_each_sample_of_a_session(home, tmp_path, checkpoint):
    out = tmp_path / "out.jsonl"
    async with memory_swarm(home, checkpoint, THIRDS) as swarm:
        options = RolloutOptions(samples=3, max_tokens=5, at_once=1, receipts=True)
        await swarm.client.rollouts(str(checkpoint), [{"token_ids": PROMPT}], out, options=options)
    for one in samples(out).values():
        assert one.receipts == f"out.jsonl.receipts/1-{one.sample}.json"
        assert one.faults == []
        kept = read_kept_answer((tmp_path / one.receipts).read_bytes(), one.receipts)
        assert list(kept.token_ids) == [*one.prompt_token_ids, *one.token_ids]
        assert all(hop.receipts for hop in kept.hops)


async def test_they_rest_while_somebody_waits_for_an_answer_but_for_one(
    home, tmp_path, checkpoint, monkeypatch
):
    monkeypatch.setattr(running, "LOOK_EVERY_S", 0.02)
    going, resting = 0, []
    async with memory_swarm(home, checkpoint, [Span(0, 6)], announce_s=0.1) as swarm:
        node, done = swarm.nodes[0], trio.Event()

        async def make():
            options = RolloutOptions(samples=6, max_tokens=40, at_once=6)
            await swarm.client.rollouts(
                str(checkpoint), [{"token_ids": PROMPT}], tmp_path / "out.jsonl", options=options
            )
            done.set()

        def steps():
            return Counter({hop.session: hop.queue.length for hop in node.server._sessions})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(make)
            with trio.fail_after(10):
                while len(steps()) < 6:  # noqa: ASYNC110 - nobody tells
                    await trio.sleep(0.01)
            assert node.served().awaited == 0  # nobody waits for any of these
            async with swarm.client.session(str(checkpoint), tokens=200) as session:
                token = 5
                for _ in range(60):
                    token = int((await session.step([token]))[-1].argmax())
                    await trio.sleep(0.02)
                    before, after = resting, steps()
                    resting = after
                    going = sum(after[s] != before[s] for s in before if s in after) if before else 0
                    if node.served().awaited == 1 and len(after) > 2 and going <= 2:
                        break
                else:
                    pytest.fail("they did not rest")
            with trio.fail_after(30):
                await done.wait()
    assert len(samples(tmp_path / "out.jsonl")) == 6


async def test_a_node_that_is_full_is_asked_for_less_and_the_run_ends_all_the_same(
    home, tmp_path, checkpoint, monkeypatch
):
    monkeypatch.setattr(running, "GROW_EVERY_S", 3600.0)  # else a slow machine has it try ever more
    begin, refused, told, most = Sessions.begin, [], [], 0

    def counted(*asked):
        try:
            return begin(*asked)
        except Busy as error:
            refused.append(error)
            raise

    monkeypatch.setattr(Sessions, "begin", counted)
    async with memory_swarm(home, checkpoint, [Span(0, 6)], max_sessions=2) as swarm:

        def tell(done):
            nonlocal most
            most = max(most, swarm.nodes[0].server.sessions)
            told.append(done)

        options = RolloutOptions(samples=8, max_tokens=4, at_once=6)
        await swarm.client.rollouts(
            str(checkpoint), PROMPTS[:2], tmp_path / "out.jsonl", options=options, told=tell
        )
    assert len(samples(tmp_path / "out.jsonl")) == 16
    assert most <= 2  # the node's own doing; what follows is that of the run
    assert refused
    assert len(refused) <= 8
    # Those that were refused are made in the end, by no more than the node takes.
    assert next(done.at_once for done in told if done.made > 12) <= 2


async def test_where_nobody_serves_it_the_run_ends_with_what_is_missing_and_goes_on_later(
    home, tmp_path, checkpoint, autojump_clock
):
    out = tmp_path / "out.jsonl"
    async with memory_swarm(home, checkpoint, THIRDS[:2]) as swarm:
        options = RolloutOptions(samples=1, max_tokens=2, patience_s=8.0)
        with pytest.raises(NoCoverage):
            await swarm.client.rollouts(str(checkpoint), PROMPTS[:1], out, options=options)
        assert trio.current_time() > 8
        assert out.read_bytes() == b""
        await swarm.add_node(THIRDS[2])
        await swarm.client.rollouts(str(checkpoint), PROMPTS[:1], out, options=options)
    assert len(samples(out)) == 1


async def test_a_disk_that_is_full_leaves_whole_lines(home, tmp_path, checkpoint, monkeypatch):
    out = tmp_path / "out.jsonl"
    async with memory_swarm(home, checkpoint, [Span(0, 6)]) as swarm:
        fsync, asked = os.fsync, []

        def full(file):
            if not out.exists() or not os.path.samestat(os.fstat(file), out.stat()):
                return fsync(file)
            asked.append(file)
            if len(asked) > 2:
                raise OSError(28, "No space left on device", str(out))
            return fsync(file)

        monkeypatch.setattr("shoal.client.rollouts.samples.os.fsync", full)
        options = RolloutOptions(samples=4, max_tokens=2, at_once=1)
        with pytest.raises(OSError, match="No space"):
            await swarm.client.rollouts(str(checkpoint), PROMPTS[:1], out, options=options)
        left = out.read_bytes()  # of what was written and did not come to the disk, nothing
        assert left.endswith(b"\n")
        assert len(samples(out)) == left.count(b"\n") == 2
        monkeypatch.undo()
        await swarm.client.rollouts(str(checkpoint), PROMPTS[:1], out, options=options)
    assert out.read_bytes().startswith(left)
    assert len(samples(out)) == 4
