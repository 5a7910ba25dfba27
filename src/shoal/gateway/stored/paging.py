"""Lists a page at a time, as OpenAI's API has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from starlette.requests import Request

from shoal.gateway.errors import BadRequest

MOST = 100
DEFAULT = 20


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list is asked for."""

    limit: int = DEFAULT
    order: Literal["asc", "desc"] = "desc"
    """By age: ``desc`` has the newest first."""
    after: str | None = None
    """The id that the page before ended with."""

    def of(self, oldest_first: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """This part of a whole list of objects with an ``id``.

        Raises:
            BadRequest: ``after`` is none of them.
        """
        items = list(oldest_first if self.order == "asc" else reversed(oldest_first))
        if self.after is not None:
            places = [place for place, item in enumerate(items) if item["id"] == self.after]
            if not places:
                raise BadRequest(f"the list has no {self.after[:64]!r}", param="after")
            items = items[places[0] + 1 :]
        shown = items[: self.limit]
        return {
            "object": "list",
            "data": shown,
            "first_id": shown[0]["id"] if shown else None,
            "last_id": shown[-1]["id"] if shown else None,
            "has_more": len(items) > len(shown),
        }


def requested_page(request: Request, *, most: int = MOST, default: int = DEFAULT) -> Page:
    """The page that a request's query names.

    Raises:
        BadRequest: a value that there is not.
    """
    query = request.query_params
    limit, order = query.get("limit", str(default)), query.get("order", "desc")
    if not (limit.isascii() and limit.isdecimal() and len(limit) < 7 and 1 <= int(limit) <= most):
        raise BadRequest(f"limit must be a whole number from 1 to {most}", param="limit")
    if order not in ("asc", "desc"):
        raise BadRequest("order must be 'asc' or 'desc'", param="order")
    return Page(int(limit), order, query.get("after"))
