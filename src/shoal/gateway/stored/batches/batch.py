"""What a batch is, and which way it goes from its creation to its end. Pure."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from shoal.types import ProtectionLevel

BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/responses"]
WINDOW = "24h"
WINDOW_S = 86400.0
ENDED: frozenset[BatchStatus] = frozenset({"failed", "completed", "expired", "cancelled"})
MAX_ERRORS = 100
"""Faults of an input file that are told."""


class BatchError(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with a batch as a whole."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class StoredBatch(msgspec.Struct, frozen=True, kw_only=True):
    """Times are seconds since 1970."""

    id: str
    endpoint: Endpoint
    input_file: str
    output_file: str
    error_file: str
    """The last two are written line by line, and shown once the batch has ended, if they have any."""
    created: float
    expires: float
    status: BatchStatus = "validating"
    reached: dict[str, float] = {}
    """When it came to each status."""
    metadata: dict[str, str] | None = None
    output_kept_s: float | None = None
    """How long its outputs are kept, where its caller has said."""
    protect: ProtectionLevel | None = None
    """That of its lines that do not say, as the request had it that made the batch, by its header or its key.
    ``None`` as its key has it: so it is for batches of versions that did not keep it."""
    total: int = 0
    """Requests in it; 0 until its file was read."""
    errors: tuple[BatchError, ...] = ()
    has_output: bool = False
    has_errors: bool = False
    counted: tuple[int, int] | None = None
    """Requests that were answered and that have failed, once it has ended; ``None`` also for batches of
    versions that did not keep it."""

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    def to(self, status: BatchStatus, now: float, **changes: Any) -> StoredBatch:
        """The same in another status. What has ended stays as it is."""
        if self.ended:
            return self
        reached = self.reached | {status: now}
        return msgspec.structs.replace(self, status=status, reached=reached, **changes)

    def cancelled(self, now: float) -> StoredBatch:
        """After its caller has asked to end it: at once, if nothing was begun."""
        if self.ended or self.status in ("cancelling", "finalizing"):
            return self
        stopping = self.to("cancelling", now)
        return stopping.to("cancelled", now) if self.status == "validating" else stopping

    def shown(self, completed: int, failed: int) -> dict[str, Any]:
        """As OpenAI's API has it, with so many requests answered so far."""
        times = {
            f"{status}_at": int(self.reached[status]) if status in self.reached else None
            for status in (
                "in_progress",
                "finalizing",
                "completed",
                "failed",
                "expired",
                "cancelling",
                "cancelled",
            )
        }
        errors = [msgspec.to_builtins(error) for error in self.errors]
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": {"object": "list", "data": errors} if errors else None,
            "input_file_id": self.input_file,
            "completion_window": WINDOW,
            "status": self.status,
            "output_file_id": self.output_file if self.has_output else None,
            "error_file_id": self.error_file if self.has_errors else None,
            "created_at": int(self.created),
            "expires_at": int(self.expires),
            **times,
            "request_counts": {"total": self.total, "completed": completed, "failed": failed},
            "metadata": self.metadata,
        }
