"""One question to a peer, what it runs on, over a channel to it; and what its evidence shows."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import trio

from shoal.errors import DeadlineExceeded, NotAllowed, RemoteProtocolError
from shoal.net.channel import Channel
from shoal.swarm.announcement import Served
from shoal.trust.attestation.evidence import Binding, read_evidence
from shoal.trust.attestation.measurements import Measurements
from shoal.trust.attestation.verify import MAKERS, Roots, Verified, verify_evidence
from shoal.wire.messages import NONCE_BYTES, Attest, Attested

ANSWERED_WITHIN_S = 15.0
"""Hardware takes up to a second for a quote, and others may wait for theirs."""
VERIFIERS = 1
"""Threads that verify; one quote takes some milliseconds."""


@dataclass(eq=False)
class _Question:
    channel: Channel
    answered: trio.Event = field(default_factory=trio.Event)
    answer: Attested | None = None
    payload: bytes = b""


class AttestationQuestions:
    """The questions of one client that wait for answers.

    Args:
        allowed: the operator's list.
        clock: the time of day, in seconds since the epoch.
        roots: whose word is believed.
    """

    def __init__(self, allowed: Measurements, clock: Callable[[], float], roots: Roots = MAKERS) -> None:
        self._allowed = allowed
        self._clock = clock
        self._roots = roots
        self._asked = 0
        self._waiting: dict[int, _Question] = {}
        self._limiter = trio.CapacityLimiter(VERIFIERS)

    async def ask(self, channel: Channel, served: Served) -> Verified:
        """Have the peer at the other end of ``channel`` show what it runs on.

        Args:
            served: what it announces; its evidence must be for that model and those numerics.

        Raises:
            AttestationRefused: its evidence does not show what it should.
            NotAllowed: it shows nothing; says why.
            ChannelClosed: it is gone.
            DeadlineExceeded: it does not answer in time.
            UsageError: a library that is needed to verify it is not here.
        """
        self._asked = number = self._asked + 1
        nonce, asked_at = os.urandom(NONCE_BYTES), self._clock()
        question = self._waiting[number] = _Question(channel)
        try:
            with trio.move_on_after(ANSWERED_WITHIN_S):
                await channel.send(Attest(number, nonce))
                await question.answered.wait()
        finally:
            del self._waiting[number]
        if question.answer is None:
            raise DeadlineExceeded(f"{channel.peer} did not show what it runs on in time")
        if question.answer.refused or not question.payload:
            raise NotAllowed(f"{channel.peer} shows nothing: {question.answer.refused or 'no reason given'}")
        expected = Binding(channel.peer, nonce, served.digest, served.numerics, channel.noise_key)
        evidence = read_evidence(question.payload)
        # By the time at which it was asked for: from then on it counts.
        verify = partial(verify_evidence, evidence, expected, self._allowed, asked_at, self._roots)
        return await trio.to_thread.run_sync(verify, limiter=self._limiter)

    def answered(self, channel: Channel, message: Attested, payload: bytes) -> None:
        """Take an answer in. Raises RemoteProtocolError: it answers nothing that this peer was asked."""
        question = self._waiting.get(message.number)
        if question is None:
            if message.number <= self._asked:
                return  # it comes too late
            raise RemoteProtocolError("evidence that nobody asked for")
        if question.channel is not channel:
            raise RemoteProtocolError("evidence that another peer was asked for")
        question.answer, question.payload = message, payload
        question.answered.set()
