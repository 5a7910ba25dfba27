"""A model with an encoder and a decoder over real node processes: the tokens of transformers, also when a hop
of the decoder is killed while it answers. It is Whisper, which sends the most."""

from __future__ import annotations

import os
import signal

import pytest

from shoal.testing.seq2seq import write_speech_to_text
from shoal.types import Span
from tests.client.test_transcribe import expected as heard_by_whisper
from tests.client.test_transcribe import said, sound

from .conftest import OPERATOR, operators, processes_of

pytestmark = pytest.mark.swarm


def test_whisper_writes_down_over_three_hops_what_it_does_in_transformers(tmp_path, home):
    folder = write_speech_to_text(tmp_path / "whisper")  # of 4 and 4 blocks and 1,500 rows, as Whisper-tiny
    made, sessions = sound(5), []
    wanted = heard_by_whisper(folder, made.samples)
    assert len(wanted) > 8

    def lose_one(session):
        assert [str(hop.span) for hop in session.ring.route] == ["4:6", "6:7", "7:8"]
        sessions.append(session)
        if len(sessions) == 2:
            os.kill(middle["pid"], signal.SIGKILL)

    with processes_of(home, str(folder), [Span(0, 7), Span(6, 7), Span(6, 8)], format="fp32") as processes:
        middle = processes.local.nodes[1]
        with processes.connect(pin=(middle["peer"],)) as swarm:
            for _ in range(2):
                found = swarm.transcribe(str(folder), made, language="en", follow=lose_one)
                assert said(found.segments[0].token_ids) == wanted
            assert operators(swarm.announcements()) == {OPERATOR.peer}
    assert not sessions[0].reroutes and sessions[1].reroutes
    assert middle["peer"] not in {hop.address.peer for hop in sessions[1].ring.route}
