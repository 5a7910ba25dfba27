"""Everything that can go wrong, as types.

ShoalError
├── UsageError             what the user asked for cannot be understood
├── NotRunning             no swarm, or no peer of it, can be reached
├── NoCoverage             some blocks are served by nobody
├── NotAllowed             the swarm, or a peer, refuses us
│   └── BadInvite          an invite code that cannot be read
├── OutOfResources         this machine has no room (memory, disk, ports)
│   ├── Busy               a peer has no room now; says when to come back
│   └── PortInUse
├── IncompatibleLibrary    a library that we build on is here in a version that does not fit
├── ModelError
│   ├── UnknownModel       names the close ones
│   ├── BadWeights         a checkpoint that is damaged, truncated or dishonest
│   ├── UnsupportedModel   a checkpoint that we will not or cannot run
│   ├── DigestMismatch     two versions of a model met
│   └── PromptTooLong      refused, never cut
├── SessionError
│   ├── UnknownSession     a hop does not know the session, or it belongs to another
│   ├── PositionGap        a step that begins beyond what the hop has cached
│   ├── CannotRollBack     the cache cannot return to that position; replay
│   ├── Superseded         a step that was given up before its turn came
│   └── StepFailed         the span's forward failed (NaN, internal fault)
├── ProtocolError
│   ├── LocalProtocolError   we broke the protocol: a defect of ours
│   ├── RemoteProtocolError  the peer broke it: close the channel, blame the peer
│   ├── OutdatedPeer         a peer's release does not know what it is asked for; it has done nothing wrong
│   └── OutdatedRelease      this machine's release is too old for a peer
├── PaymentError
│   ├── VoucherRefused     a payee does not take a voucher; its reason says why
│   ├── PaymentRequired    a payee waits for the next voucher
│   ├── PaymentStopped     a payer signs no more; its reason says why
│   ├── BadLedgerFile      an account or a key on this disk is damaged
│   └── ChainError         a chain's node is away, is of another chain, or refuses; its reason says which
├── ChannelClosed          the peer, or the way to it, is gone
└── DeadlineExceeded       no answer within the time the caller allowed

Each error says what is wrong (``message``), what to check (``check``) and the next command to try
(``next_command``). Those that cross the wire carry their ``code``; see :func:`from_code`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import ClassVar

from shoal.types import Span

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_NOT_RUNNING = 3
EXIT_NO_COVERAGE = 4
EXIT_NOT_ALLOWED = 5
EXIT_OUT_OF_RESOURCES = 6
EXIT_INTERRUPTED = 130

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the system says when a file cannot grow."""


class ShoalError(Exception):
    """The root of every error that Shoal raises on purpose."""

    code: ClassVar[str] = "failure"
    exit_code: ClassVar[int] = EXIT_FAILURE

    def __init__(self, message: str, *, check: str = "", next_command: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.check = check
        self.next_command = next_command


class UsageError(ShoalError):
    code = "usage"
    exit_code = EXIT_USAGE


class NotRunning(ShoalError):
    code = "not_running"
    exit_code = EXIT_NOT_RUNNING


class NoCoverage(ShoalError):
    """Some blocks of a model are served by no reachable peer."""

    code = "no_coverage"
    exit_code = EXIT_NO_COVERAGE

    def __init__(
        self, message: str, *, missing: Iterable[Span] = (), check: str = "", next_command: str = ""
    ) -> None:
        super().__init__(message, check=check, next_command=next_command)
        self.missing = tuple(missing)


class NotAllowed(ShoalError):
    code = "not_allowed"
    exit_code = EXIT_NOT_ALLOWED


class BadInvite(NotAllowed):
    code = "bad_invite"


class OutOfResources(ShoalError):
    code = "out_of_resources"
    exit_code = EXIT_OUT_OF_RESOURCES


class Busy(OutOfResources):
    """A peer has no room for what was asked."""

    code = "busy"

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float = 1.0,
        tokens_free: int = 0,
        check: str = "",
        next_command: str = "",
    ) -> None:
        super().__init__(message, check=check, next_command=next_command)
        self.retry_after_s = retry_after_s
        self.tokens_free = tokens_free


class PortInUse(OutOfResources):
    code = "port_in_use"


class IncompatibleLibrary(ShoalError):
    code = "incompatible_library"


class ModelError(ShoalError):
    code = "model"


class UnknownModel(ModelError):
    code = "unknown_model"


class BadWeights(ModelError):
    code = "bad_weights"


class UnsupportedModel(ModelError):
    code = "unsupported_model"


class DigestMismatch(ModelError):
    code = "digest_mismatch"


class PromptTooLong(ModelError):
    code = "prompt_too_long"


class SessionError(ShoalError):
    code = "session"


class UnknownSession(SessionError):
    code = "unknown_session"


class PositionGap(SessionError):
    code = "position_gap"


class CannotRollBack(SessionError):
    code = "cannot_roll_back"


class Superseded(SessionError):
    code = "superseded"


class StepFailed(SessionError):
    code = "step_failed"


class ProtocolError(ShoalError):
    code = "protocol"


class LocalProtocolError(ProtocolError):
    code = "local_protocol"


class RemoteProtocolError(ProtocolError):
    code = "remote_protocol"


class OutdatedPeer(ProtocolError):
    """A peer's release is too old for what is asked of it. It has done nothing wrong."""

    code = "outdated_peer"


class OutdatedRelease(ProtocolError):
    """This machine's release is too old for a peer's."""

    code = "outdated_release"


class PaymentError(ShoalError):
    """``reason`` is a word or two that tests and programs may compare."""

    code = "payment"

    def __init__(self, message: str, *, reason: str = "", check: str = "", next_command: str = "") -> None:
        super().__init__(message, check=check, next_command=next_command)
        self.reason = reason


class VoucherRefused(PaymentError):
    """``reason``: other chain, other contract, other channel, overflow, over deposit, stale, replayed, dust
    or signature."""

    code = "voucher_refused"


class PaymentRequired(PaymentError):
    """No more work before a voucher comes. ``reason``: unpaid, over deposit or closing."""

    code = "payment_required"


class PaymentStopped(PaymentError):
    """``reason``: price raised, budget spent, overcharged or forged."""

    code = "payment_stopped"


class BadLedgerFile(PaymentError):
    code = "bad_ledger_file"


class ChainError(PaymentError):
    """``reason``: down, refused, nonsense, other chain, reverted, not yet, dropped, poor, dear or
    no contract."""

    code = "chain"


class ChannelClosed(ShoalError):
    code = "channel_closed"


class DeadlineExceeded(ShoalError):
    code = "deadline"


def _tree(root: type[ShoalError]) -> dict[str, type[ShoalError]]:
    """The errors of this module by code. Those that other parts derive hold more than a peer can tell."""
    found = {root.code: root}
    for child in root.__subclasses__():
        if child.__module__ == __name__:
            found |= _tree(child)
    return found


def from_code(code: str, message: str, *, retry_after_s: float = 1.0, tokens_free: int = 0) -> ShoalError:
    """The typed error that a peer reported by ``code``. An unknown code becomes a plain ShoalError."""
    kind = _tree(ShoalError).get(code, ShoalError)
    if issubclass(kind, Busy):
        return kind(message, retry_after_s=retry_after_s, tokens_free=tokens_free)
    return kind(message)


def as_shoal_error(error: BaseException) -> ShoalError | None:
    """The error to show for what was raised, or ``None`` when it is a defect.

    A nursery wraps what its tasks raise in groups: the first error in there that we know is the one to show.
    """
    if isinstance(error, ShoalError):
        return error
    if isinstance(error, BaseExceptionGroup):
        found = [as_shoal_error(inner) for inner in error.exceptions]
        return next((inner for inner in found if inner is not None), None)
    if isinstance(error, MemoryError):
        return OutOfResources(
            "this machine has no memory left",
            check="close other programs that use memory",
            next_command="shoal doctor",
        )
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        where = error.filename or "a file could not be written"
        return OutOfResources(
            f"{where}: {error.strerror}", check="free some disk space", next_command="shoal doctor"
        )
    if isinstance(error, OSError) and error.filename is not None:
        return ShoalError(
            f"{error.filename}: {error.strerror}",
            check="check that it exists and that you have permission to use it",
            next_command="shoal doctor",
        )
    return None


def caused_by(error: BaseException, kind: type[BaseException]) -> bool:
    """Whether an error of that kind is what ended the command, alone or among the errors it caused."""
    if isinstance(error, BaseExceptionGroup):
        return any(caused_by(inner, kind) for inner in error.exceptions)
    return isinstance(error, kind)
