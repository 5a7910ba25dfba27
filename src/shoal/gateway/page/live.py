"""``/api/…``: what the page asks for, each thing once or all of it live."""

from __future__ import annotations

import io
import shlex
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import segno
import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from shoal.config import DEFAULT_MODEL, DEFAULT_SWARM
from shoal.gateway.access.guard import caller_of
from shoal.gateway.access.keys import LOCAL, KeyRing
from shoal.gateway.access.usage import Usage, usage_days
from shoal.gateway.errors import BadRequest, Forbidden, LimitReached
from shoal.gateway.page.apps import APPS, KEY_HINT, NO_KEY, GatewayAddress
from shoal.gateway.page.feed import Feed
from shoal.gateway.page.history import SwarmHistory
from shoal.gateway.page.money import MoneyHistory
from shoal.option_values import show_coins
from shoal.swarm.audit_book import AuditBook
from shoal.swarm.invite import write_invite
from shoal.swarm.join import here_only
from shoal.swarm.market import Market, as_csv, market
from shoal.swarm.membership import Membership

MOST_CHARACTERS = 1024
Invite = Callable[[], Membership]
"""Gives, on a thread, what another machine needs to come in. Raises ``UsageError`` where nobody may."""


class Live:
    """The routes of the page's data."""

    def __init__(
        self,
        feed: Feed,
        invite: Invite,
        model: str,
        *,
        history: SwarmHistory,
        money: MoneyHistory,
        usage: Usage,
        keys: KeyRing,
    ) -> None:
        self._feed = feed
        self._invite = invite
        self._model = model
        self._day = history
        self._money_by_hour = money
        self._used = usage
        self._keys = keys

    def routes(self) -> list[Route]:
        return [
            Route("/api/events", self._events),
            Route("/api/swarm", self._swarm),
            Route("/api/market", self._market),
            Route("/api/market.csv", self._market_csv),
            Route("/api/money", self._money),
            Route("/api/requests", self._requests),
            Route("/api/health", self._health),
            Route("/api/history", self._history),
            Route("/api/usage", self._usage),
            Route("/api/invite", self._show_invite),
            Route("/api/apps", self._apps),
        ]

    async def _events(self, request: Request) -> Listening:
        if self._feed.full:
            raise LimitReached("too many pages listen already", retry_after_s=5.0)
        return Listening(self._feed)

    async def _swarm(self, request: Request) -> Response:
        return Response(self._feed.swarm_now(), media_type="application/json")

    async def _market(self, request: Request) -> Response:
        """What the swarm offers, as `shoal market --json` prints it."""
        return Response(msgspec.json.encode(await self._offered()), media_type="application/json")

    async def _market_csv(self, request: Request) -> Response:
        """The same, as `shoal market --csv` does."""
        return Response(as_csv(await self._offered()), media_type="text/csv")

    async def _offered(self) -> Market:
        swarm = self._feed.swarm
        book, now = AuditBook(swarm.settings.paths.audits), swarm.member.clock.wall()
        liars = await trio.to_thread.run_sync(book.liars, now)
        return market(self._feed.name, swarm.announcements(), liars)

    async def _money(self, request: Request) -> Response:
        """What was earned and spent by hops' vouchers, hour by hour: for administrators alone."""
        if not caller_of(request).admin:
            check = "use a key made with: shoal key create NAME --admin"
            raise Forbidden("this key may not see what was earned and spent", check=check)
        hours = await self._money_by_hour.database.run(self._money_by_hour.shown)
        shown = [
            {"hour": one.hour, "earned": show_coins(one.earned), "spent": show_coins(one.spent)}
            for one in hours
        ]
        return JSONResponse({"hours": shown})

    async def _requests(self, request: Request) -> Response:
        return JSONResponse(self._feed.records.shown())

    async def _health(self, request: Request) -> Response:
        return JSONResponse(self._feed.health_now())

    async def _history(self, request: Request) -> Response:
        """The last day: a moment a minute, while this gateway ran."""
        moments = await self._day.database.run(self._day.shown)
        return JSONResponse({"model": self._model, "moments": [moment._asdict() for moment in moments]})

    async def _usage(self, request: Request) -> Response:
        """What was used by day: of every key for an administrator's, of his own for everybody else."""
        caller = caller_of(request)
        whose = None if caller.admin else caller.id
        days = usage_days(time.time())
        found = await self._used.database.run(self._used.by_key, days, whose)
        keys = [{"key": id, "name": self._name(id), "tokens": tokens} for id, tokens in found.items()]
        return JSONResponse({"days": days, "keys": keys})

    def _name(self, id: str) -> str:
        caller = LOCAL if id == LOCAL.id else self._keys.caller(id)
        return caller.name if caller else id  # a revoked key's name is not known any more

    async def _apps(self, request: Request) -> Response:
        """What programs need to use the gateway at the address that the page was found at."""
        query = request.query_params
        origin, model = query.get("origin", ""), query.get("model", "")
        if not (0 < len(origin) <= MOST_CHARACTERS and 0 < len(model) <= MOST_CHARACTERS):
            check = f"send origin and model, of at most {MOST_CHARACTERS} characters"
            raise BadRequest("origin or model is missing, or too long", check=check)
        place = GatewayAddress(origin, model, KEY_HINT if query.get("keyed") == "true" else NO_KEY)
        return JSONResponse(
            [
                {
                    "id": app.name,
                    "title": app.title,
                    "first": app.install,
                    "text": app.lines(place),
                    "launch": f"shoal launch {app.name}",
                    "note": app.note,
                }
                for app in APPS
            ]
        )

    async def _show_invite(self, request: Request) -> Response:
        """Who has the code is a member of the swarm: only an administrator's key gets it."""
        if not caller_of(request).admin:
            check = "use a key made with: shoal key create NAME --admin"
            raise Forbidden("this key may not invite", check=check)
        swarm = await trio.to_thread.run_sync(self._invite)
        code = write_invite(swarm)
        image = io.BytesIO()
        segno.make_qr(code.upper(), error="l").save(image, kind="svg", xmldecl=False, scale=4)
        return JSONResponse(
            {
                "code": code,
                "command": f"shoal join {code} && {_up(swarm.name, self._model)}",
                "qr_svg": image.getvalue().decode(),
                "here_only": here_only(swarm),
            }
        )


def _up(swarm: str, model: str) -> str:
    """What starts a node there. Names the swarm and the model where they are not the default ones.

    A folder of this machine is called by its name: elsewhere it lies in another place.
    """
    model = Path(model).name if Path(model).is_absolute() else model
    words = ["shoal", "up"]
    if swarm != DEFAULT_SWARM:
        words += ["--swarm", swarm]
    if model != DEFAULT_MODEL:
        words += ["--model", model]
    return shlex.join(words)


class Listening:
    """An ASGI response that goes on for as long as its page listens."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._feed.listen(scope, receive, send)
