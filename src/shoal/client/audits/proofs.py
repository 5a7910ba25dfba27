"""Has a hop prove one block of an answer: drawn in secret, checked with this machine's own weights of it.

Rows are asked for, and the proof, while the session is open. No proof changes an answer's tokens or fails it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from random import SystemRandom

import msgspec
import trio

from shoal.client.audits.auditors import HERE, OwnAuditor, fault_share
from shoal.client.audits.block_check import BlockClaim
from shoal.client.audits.findings import Findings
from shoal.client.audits.protection import AuditResult, Protection
from shoal.client.receipts.pull import AnswerReceipts, pull_receipts
from shoal.client.receipts.replay import load_blocks
from shoal.client.sampling import Sampling
from shoal.client.session import Session
from shoal.config import Settings
from shoal.errors import Busy, NotAllowed, RemoteProtocolError, ShoalError
from shoal.executor.codecs import decode, join_rows
from shoal.executor.device.device import cpu, memory_budget
from shoal.executor.pages import PAGE
from shoal.executor.proofs.tracer import BlockTracer
from shoal.executor.shape import llama_shape
from shoal.models.checkpoint.checkpoint import open_checkpoint
from shoal.models.checkpoint.sizes import block_bytes
from shoal.models.store.local_model import LocalModel
from shoal.routing.reputation import SHARED_FAULT
from shoal.sharing.peer_weights import PeerWeights, has_span
from shoal.tasks import seconds_left
from shoal.trust.answer import KeptAnswer
from shoal.trust.audit import AuditVerdict, Chance, auditable, is_whole
from shoal.trust.proofs.block_proof import read_roots
from shoal.trust.proofs.draw import PROVABLE_FORMATS, ProofTarget, draw_target, provable_windows
from shoal.trust.rows import WINDOW, row_log
from shoal.types import Kv, ModelShape, Numerics, PeerId, Span
from shoal.wire.proofs import Prove

PROTECT_WITHIN_S = 60.0
"""How much later an answer ends at most, where the block's weights have to be fetched first; else it is what
hops have."""
REVEAL_WITHIN_S = 4.0
"""What a hop has to show a window's rows."""
COMMIT_WITHIN_S = 5.0
PROVE_WITHIN_S = 10.0
GIVEN = "nothing is proved of a model with an encoder and a decoder: its bits are not the same everywhere"

LOOSE = "nothing is proved: steps say of its images what no receipt does, and so no window that is run again"


class Proofs:
    """For one client.

    Args:
        weights: brings blocks that are not here.
    """

    def __init__(self, settings: Settings, weights: PeerWeights, own: OwnAuditor, findings: Findings) -> None:
        self._settings, self._weights, self._own, self._findings = settings, weights, own, findings
        self._limiter = trio.CapacityLimiter(1)  # one block in memory at a time
        self.chance: Chance = SystemRandom().random
        """Draws what is proved."""

    async def protect(
        self, session: Session, prompt: Sequence[int], said: Sequence[int], sampling: Sampling | None
    ) -> tuple[AnswerReceipts | None, Protection]:
        """Have an answer signed that a session still holds, and one block of it proved. Never raises for it.

        Args:
            said: the answer's tokens.
            sampling: as of ``pull_receipts``.
        """
        until = trio.current_time() + PROTECT_WITHIN_S
        try:
            receipts = await pull_receipts(session, prompt, said, sampling)
        except ShoalError as error:
            why = f"no receipts were to be had: {error.message}"
            return None, Protection("proved", "fast", faults=(why,))
        kept, faults = receipts.kept, receipts.faults
        bad = {hop for fault in faults for hop in fault.hops}
        signed = tuple(h.peer for i, h in enumerate(kept.hops) if h.receipts and i not in bad)
        found = Protection("proved", "fast", signed, faults=tuple(fault.what for fault in faults))
        target = await self._target(session, receipts)
        if isinstance(target, str):
            return receipts, replace(found, faults=(*found.faults, target))
        try:
            result = await self._proved(session, kept, target, until)
        except ShoalError as error:
            result = _result(kept, target, "open", f"it could not be checked: {error.message}")
        whole = result.verdict == "same" and is_whole(kept, faults)
        return receipts, replace(found, level="proved" if whole else "fast", audits=(result,))

    async def _target(self, session: Session, receipts: AnswerReceipts) -> ProofTarget | str:
        """What is to be proved, or why nothing can be."""
        kept, numerics = receipts.kept, Numerics.parse(receipts.kept.numerics)
        if session.ends.given:
            return GIVEN
        if session.ends.pictures.loose:
            return LOOSE
        if not numerics.exact or numerics.format not in PROVABLE_FORMATS:
            return (
                f"by {numerics} nothing is proved: proofs are of int8 and w8a8 on the C kernels; serve the "
                "model with --format int8, or ask for audited"
            )
        try:
            window_bytes = await trio.to_thread.run_sync(self._window_bytes, session.shape, numerics.kv)
        except ShoalError as error:
            return f"nothing could be proved: {error.message}"
        links = [session.ring.places.link_bytes_s(index) for index in range(len(session.ring.route))]
        hops = provable_windows(auditable(kept, receipts.faults), links, window_bytes)
        target = draw_target(kept, hops, self.chance)
        return target or "no hop's receipts hold, so nothing could be proved"

    def _window_bytes(self, shape: ModelShape, kv: Kv) -> int:
        """Of a block's keys and values of one window.

        Raises:
            NotAllowed: the model is not on this machine, or is run by its own modules.
            BadWeights, UnsupportedModel: its files cannot be read.
        """
        llama = llama_shape(open_checkpoint(self._found(shape).path).config)
        if llama is None:
            raise NotAllowed(f"{shape.name} is not of Llama's shape, so its own modules run it")
        return llama.kv_page_bytes(kv) * WINDOW // PAGE

    def _found(self, shape: ModelShape) -> LocalModel:
        model = self._weights.store.find(shape.digest)
        if model is None:
            raise NotAllowed(f"{shape.name} is not on this machine, so its weights are unknown")
        return model

    async def _proved(
        self, session: Session, kept: KeptAnswer, target: ProofTarget, until: float
    ) -> AuditResult:
        """One block of one hop, proved or not.

        Raises:
            ShoalError: the weights are not to be had, or cannot be loaded.
        """
        rows = await self._rows(session, kept, target, until)
        if isinstance(rows, str):
            return _result(kept, target, "open", rows)
        given = join_rows(rows, kept.codec, kept.width)
        question = Prove(kept.session, kept.nonce, kept.tokens, target.window, len(given))
        roots = await self._asked(session, kept, target, question, given, COMMIT_WITHIN_S, until)
        if isinstance(roots, str):
            return _result(kept, target, "open", roots)
        model = await self._model(session, target, until)
        about = msgspec.structs.replace(question, block=target.block)
        proof = await self._asked(session, kept, target, about, given, PROVE_WITHIN_S, until)
        if isinstance(proof, str):
            return _result(kept, target, "open", proof)
        claim = BlockClaim(
            target,
            kept.receipts(target.hop)[target.window],
            decode(given, kept.codec, target.rows, kept.width),
            (),
        )
        try:
            claim = replace(claim, roots=read_roots(roots, len(target.span)))
            with trio.fail_at(until):
                return await self._checked(kept, claim, proof, model)
        except trio.TooSlowError:
            return _result(kept, target, "open", "this machine has not checked its proof in time")
        except RemoteProtocolError as error:
            self._findings.hold_against(kept.hops[target.hop].peer, SHARED_FAULT)
            return _result(kept, target, "open", f"it shows something else than a proof: {error.message}")

    async def _rows(
        self, session: Session, kept: KeptAnswer, target: ProofTarget, until: float
    ) -> list[bytes] | str:
        """What the hop was given in the window, as its receipt says; or why that is not to be had."""
        end, giver = target.first + target.rows, target.hop - 1
        if target.hop == 0:
            rows = (await session.sent_rows(end))[target.first :]
        else:
            left_s = min(REVEAL_WITHIN_S, seconds_left(until))
            try:
                rows = await session.ring.sent_rows(giver, target.rows, left_s, target.first)
            except ShoalError as error:
                self._findings.hold_against(kept.hops[giver].peer, fault_share(error, left_s))
                return f"{kept.hops[giver].peer} does not show what it sent on: {error.message}"
        if row_log(rows).window(0)[1] == kept.hops[target.hop].receipts[target.window].came:
            return rows
        if target.hop == 0:
            return "this client does not have the rows that it sent any more"
        self._findings.hold_against(kept.hops[giver].peer, SHARED_FAULT)
        return f"{kept.hops[giver].peer} shows other rows than were signed for"

    async def _asked(
        self,
        session: Session,
        kept: KeptAnswer,
        target: ProofTarget,
        question: Prove,
        given: bytes,
        within_s: float,
        until: float,
    ) -> bytes | str:
        """What the hop shows, or why it shows nothing: that counts as a refused session does, but where it is
        busy. It has one prover for all, and whoever keeps that busy is to harm nobody's name."""
        had_s = min(within_s, seconds_left(until))
        try:
            return await session.ring.places.hops[target.hop].prove(question, given, had_s)
        except Busy as error:
            return f"it proves nothing now: {error.message}"
        except ShoalError as error:
            self._findings.hold_against(kept.hops[target.hop].peer, fault_share(error, had_s))
            return f"it proves nothing: {error.message}"

    async def _model(self, session: Session, target: ProofTarget, until: float) -> LocalModel:
        """The model, with the weights of the block on this machine.

        Raises:
            NotAllowed: they are not to be had, in time or at all, or do not fit into memory.
            ShoalError: as ``PeerWeights.fetch_span``.
        """
        model = await trio.to_thread.run_sync(self._found, session.shape)
        sizes = await trio.to_thread.run_sync(block_bytes, model, session.ring.numerics.format)
        if (needed := sizes[target.block]) > memory_budget(self._settings, cpu()):
            raise NotAllowed(
                f"block {target.block} of {model.name} takes {needed >> 20} MiB, which is too much"
            )
        span = Span(target.block, target.block + 1)
        with trio.move_on_at(until):
            await self._weights.fetch_span(model, span)
        if not await trio.to_thread.run_sync(has_span, model, span):
            raise NotAllowed(f"block {target.block} of {model.name} is not on this machine")
        return model

    async def _checked(
        self, kept: KeptAnswer, claim: BlockClaim, proof: bytes, model: LocalModel
    ) -> AuditResult:
        """What a proof comes to. One that fails is checked again with weights that were compared with the
        model's manifest, before anybody is named. Raises as :meth:`BlockClaim.check`."""
        target, numerics = claim.target, Numerics.parse(kept.numerics)

        def check() -> str | None:
            return claim.check(proof, self._tracer(model, target, numerics))

        def check_anew() -> str | None:
            self._own.check_weights(model)
            return check()

        by, thread = HERE, partial(trio.to_thread.run_sync, limiter=self._limiter, abandon_on_cancel=True)
        wrong = await thread(check)
        if wrong is not None:
            by = f"{HERE}, its weights checked"
            wrong = await thread(check_anew)
        if wrong is None:
            return _result(kept, target, "same", _shown(target), (by,))
        await self._findings.convict(PeerId(kept.hops[target.hop].peer), kept.digest, target.span)
        what = f"its proof does not hold: {wrong}; ask again, it is avoided from now on"
        return _result(kept, target, "cheat", what, (by,))

    def _tracer(self, model: LocalModel, target: ProofTarget, numerics: Numerics) -> BlockTracer:
        runner = load_blocks(model, Span(target.block, target.block + 1), numerics, self._settings)
        runner.make_pool(target.first + target.rows)
        return runner.tracer()


def _shown(target: ProofTarget) -> str:
    """What a proof that holds has shown, in a clause."""
    what = "it has proved that its integer products are those of the model's weights"
    if not target.window:
        return what
    return f"{what}; the keys and values of the positions before are as it says"


def _result(
    kept: KeptAnswer, target: ProofTarget, verdict: AuditVerdict, what: str, by: tuple[str, ...] = ()
) -> AuditResult:
    peer, last = kept.hops[target.hop].peer, target.first + target.rows - 1
    who = f"hop {target.hop} ({peer}), block {target.block} at tokens {target.first} to {last}"
    return AuditResult(
        target.hop,
        peer,
        target.span,
        target.rows,
        verdict,
        by,
        f"{who}: {what}",
        block=target.block,
    )
