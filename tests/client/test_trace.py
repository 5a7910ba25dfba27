"""What a client traces: every step round the ring, hop by hop, and the losses that it survived."""

from __future__ import annotations

from tests.client.conftest import PROMPT, THIRDS, memory_swarm


async def test_each_step_says_where_its_time_went(tmp_path, checkpoint):
    async with memory_swarm(tmp_path / "home", checkpoint, THIRDS) as swarm:
        answer = swarm.client.generate(str(checkpoint), PROMPT, max_tokens=4)
        async for _ in answer:
            pass
        steps = swarm.client.rings.trace.steps
        assert [step.tokens for step in steps][-3:] == [1, 1, 1]
        assert sum(step.tokens for step in steps) == len(PROMPT) + 3
        for step in steps:
            assert [(hop.peer, hop.span) for hop in step.hops] == [
                (s.peer, str(s.span)) for s in answer.route
            ]
            inside = sum(hop.compute_ms + hop.waiting_ms for hop in step.hops)
            assert all(hop.compute_ms > 0 for hop in step.hops)
            assert abs(step.total_ms - inside - step.network_ms) < 0.01


async def test_a_loss_is_traced_and_counted(tmp_path, checkpoint):
    async with memory_swarm(tmp_path / "home", checkpoint, [*THIRDS, *THIRDS]) as swarm:
        answer = swarm.client.generate(str(checkpoint), PROMPT, max_tokens=8)
        async for _ in answer:
            if len(answer.token_ids) == 3:
                lost = answer.route[1].peer
                swarm.kill(next(i for i, n in enumerate(swarm.networks) if n.peer == lost))
        (reroute,) = swarm.client.rings.trace.reroutes
        assert (reroute.way, reroute.lost) == ("resend", (lost,))
        assert b'shoal_reroutes_total{way="resend"} 1.0' in swarm.client.rings.metrics.text()
        told = [n.server.load.metrics.text() for n in swarm.nodes]
        assert sum(b'shoal_reroutes_total{way="resend"} 1.0' in text for text in told) == 1
        assert {hop.peer for hop in swarm.client.rings.trace.steps[-1].hops} == {s.peer for s in answer.route}
