"""Several gateways with one PostgreSQL: keys, limits and what is stored are the same at all of them."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager

import httpx
import pytest
import trio

from shoal.errors import OutOfResources
from shoal.gateway.access import keys, refusals, shared_allowances
from shoal.gateway.access.keys import Caller, KeyLimits, KeyRing, create, revoke
from shoal.gateway.access.limits import RequestLimiter
from shoal.gateway.access.shared_allowances import SharedAllowances
from shoal.gateway.access.usage import Usage, Used, report
from shoal.gateway.database.opening import database_at
from shoal.gateway.database.postgres import CANCEL_S, WITHIN_S
from shoal.gateway.errors import LimitReached
from tests.postgres import Server, fresh_schema

from .conftest import served, user


@contextmanager
def opened(url):
    with closing(database_at(url, None)) as database:
        yield database


@pytest.fixture
def url(postgres):
    return fresh_schema(postgres)


@pytest.fixture
def pair(url):
    """What two gateways count in one database."""
    with opened(url) as one, opened(url) as other:
        yield SharedAllowances(one), SharedAllowances(other)


@asynccontextmanager
async def two_gateways(folder, checkpoint, url):
    async with AsyncExitStack() as stack:
        found = []
        for name in ("one", "other"):
            (folder / name).mkdir()
            database = stack.enter_context(opened(url))
            found.append(
                await stack.enter_async_context(served(folder / name, checkpoint, database=database))
            )
        yield found


async def until(check, within_s=10):
    with trio.fail_after(within_s):
        while not await check():  # noqa: ASYNC110
            await trio.sleep(0.05)


async def admitted_of(many, gateways, caller):
    """How many of so many requests, at once and at each gateway in turn, are let in."""
    let_in = 0

    async def one(gateway):
        nonlocal let_in
        try:
            async with gateway.admitted(caller):
                let_in += 1
        except LimitReached:
            pass

    async with trio.open_nursery() as nursery:
        for number in range(many):
            nursery.start_soon(one, gateways[number % len(gateways)])
    return let_in


async def test_so_many_requests_a_minute_are_so_many_at_both_together(pair):
    ada = Caller("key_ada", "Ada", KeyLimits(requests_per_minute=20))
    with trio.fail_after(30):
        began = trio.current_time()
        let_in = await admitted_of(60, pair, ada)
        come_since = int((trio.current_time() - began) * 20 / 60)
        assert 20 <= let_in <= 20 + come_since
        assert await admitted_of(10, pair, Caller("key_bob", "Bob", ada.limits)) == 10
        assert await admitted_of(10, pair, Caller("key_free", "Free")) == 10


async def test_tokens_that_one_has_charged_are_used_up_at_the_other(pair):
    one, other = pair
    ada = Caller("key_ada", "Ada", KeyLimits(tokens_per_minute=10))
    began = trio.current_time()
    async with other.admitted(ada):
        await one.charge(ada, 15)
    with pytest.raises(LimitReached, match="10 tokens a minute") as refused:
        async with other.admitted(ada):
            pass
    took = trio.current_time() - began
    assert 35 - took < refused.value.retry_after_s <= 36


async def test_requests_at_once_are_counted_at_both_and_end_soon_with_a_gateway_that_is_killed(
    pair, monkeypatch
):
    monkeypatch.setattr(shared_allowances, "ALIVE_S", 2.0)
    monkeypatch.setattr(shared_allowances, "BEAT_S", 0.3)
    one, other = pair
    ada = Caller("key_ada", "Ada", KeyLimits(concurrency=2))
    await one._beat()
    async with trio.open_nursery() as nursery:
        await nursery.start(other.run)
        async with other.admitted(ada):
            held = one.admitted(ada)
            await held.__aenter__()  # and never left: what a gateway does that is killed
            with pytest.raises(LimitReached, match="2 requests at once"):
                async with other.admitted(ada):
                    pass

            async def free():
                try:
                    async with other.admitted(ada):
                        return True
                except LimitReached:
                    return False

            await until(free)
            await held.__aexit__(None, None, None)  # what is void already may be given back
        nursery.cancel_scope.cancel()
    with other._database.transaction() as found:
        for column, table in (("id", "gateways"), ("gateway", "leases")):
            left = found.execute(f"SELECT count(*) FROM {table} WHERE {column} = ?", (other._gateway,))
            assert left.fetchone() == (0,)


async def test_a_place_that_is_just_being_left_is_waited_for(pair, monkeypatch):
    monkeypatch.setattr(refusals, "FREED_WITHIN_S", 5.0)
    one, other = pair
    ada = Caller("key_ada", "Ada", KeyLimits(concurrency=1))
    await one._beat()
    async with trio.open_nursery() as nursery:

        async def answer(task_status=trio.TASK_STATUS_IGNORED):
            async with one.admitted(ada):
                task_status.started()
                await trio.sleep(0.1)

        await nursery.start(answer)
        async with other.admitted(ada):
            pass


async def test_a_key_and_what_is_stored_are_the_same_at_both(tmp_path, checkpoint, url):
    with opened(url) as database:
        key, ada = create(database, "ada", KeyLimits(requests_per_minute=4), admin=False)
    headers = {"authorization": f"Bearer {key}"}
    with trio.fail_after(60):
        async with two_gateways(tmp_path, checkpoint, url) as (one, other):
            asked = {"model": one.model, "input": "a", "max_output_tokens": 2}
            first = await one.http.post("/v1/responses", json=asked, headers=headers)
            assert first.status_code == 200
            assert (await other.http.get("/v1/models", headers=headers)).status_code == 200
            next_one = asked | {"previous_response_id": first.json()["id"]}
            second = await other.http.post("/v1/responses", json=next_one, headers=headers)
            assert second.status_code == 200
            upload = {"data": {"purpose": "batch"}, "files": {"file": ("a", b"{}\n")}}
            file = (await one.http.post("/v1/files", headers=headers, **upload)).json()["id"]
            content = await other.http.get(f"/v1/files/{file}/content", headers=headers)
            assert (content.status_code, content.content) == (200, b"{}\n")
            more = [await gateway.http.get("/v1/files", headers=headers) for gateway in (one, other) * 2]
            assert 429 in [answer.status_code for answer in more]
            for gateway in (one, other):
                await gateway.gateway.usage._write()
            with opened(url) as database:
                used = {account.caller: use for account, use in report(database)}
                assert used[ada.id].requests == 2
                revoke(database, "ada")
            made = create(one.gateway.database, "new", KeyLimits(), admin=False)[0]
            new = {"authorization": f"Bearer {made}"}

            async def told():
                return [
                    (await gateway.http.get("/v1/models", headers=which)).status_code
                    for gateway in (one, other)
                    for which in (headers, new)
                ] == [401, 200, 401, 200]

            await until(told)


async def test_while_the_database_is_away_who_needs_it_is_told_and_who_does_not_goes_on(
    tmp_path, checkpoint, postgres, monkeypatch, caplog
):
    server = Server()
    server.start()
    try:
        with opened(server.url) as database, trio.fail_after(90):
            limited, free = (
                create(database, name, limits, admin=False)[0]
                for name, limits in (("limited", KeyLimits(requests_per_minute=50)), ("free", KeyLimits()))
            )
            async with served(tmp_path, checkpoint, database=database) as gateway:
                server.stop()
                body = {"model": gateway.model, "messages": [user("hi")], "max_tokens": 2}
                errors = [
                    (await ask(gateway.http, path, body, limited))
                    for path in ("/v1/chat/completions", "/v1/messages", "/api/chat")
                ]
                assert [answer.status_code for answer in errors] == [503, 503, 503]
                assert all(answer.headers["retry-after"] for answer in errors)
                openais, anthropics, ollamas = (answer.json() for answer in errors)
                assert openais["error"]["code"] == "out_of_resources"
                assert anthropics["error"]["type"] == "api_error"
                assert ollamas["error"] == "the gateway's database is away"
                assert not any(str(server.folder) in answer.text for answer in errors)
                assert "cannot be used" in caplog.text
                assert (await ask(gateway.http, "/v1/chat/completions", body, free)).status_code == 200
                assert (await gateway.http.get("/health")).status_code == 200
                monkeypatch.setattr(keys, "KNOWN_S", 0.0)
                unknown = await ask(gateway.http, "/v1/chat/completions", body, free)
                assert (unknown.status_code, "cannot read its keys" in unknown.text) == (503, True)
                monkeypatch.undo()
                server.start()
                with database.transaction() as found:
                    assert found.execute("SELECT count(*) FROM keys").fetchone() == (2,)
                assert (await ask(gateway.http, "/v1/chat/completions", body, limited)).status_code == 200
    finally:
        server.remove()


async def ask(http: httpx.AsyncClient, path, body, key):
    return await http.post(path, json=body, headers={"authorization": f"Bearer {key}"})


class Counted:
    """A database that counts transactions, or loses the answers to so many commits."""

    def __init__(self, database, monkeypatch):
        self.begun, self.lost, self._begin = 0, 0, database.transaction
        monkeypatch.setattr(database, "transaction", self._transaction)

    @contextmanager
    def _transaction(self, lock=None):
        self.begun += 1
        with self._begin(lock) as found:
            yield found
        if self.lost:
            self.lost -= 1
            raise OutOfResources("away")


async def left_of(database, caller):
    with database.transaction() as found:
        return round(
            found.execute("SELECT tokens FROM allowances WHERE caller = ?", (caller.id,)).fetchone()[0]
        )


async def test_tokens_of_which_nobody_heard_that_they_were_charged_are_charged_once(pair, monkeypatch):
    one, other = pair
    ada, bob = (Caller(name, name, KeyLimits(tokens_per_minute=1000)) for name in ("key_ada", "key_bob"))
    began = trio.current_time()
    for caller in (ada, bob):
        async with other.admitted(caller):
            pass
    counted = Counted(one._database, monkeypatch)
    counted.lost = 2
    await one.charge(ada, 500)
    await one.charge(bob, 500)
    await one.charge(ada, 300)
    for _ in range(2):
        await one._beat()
    left = [await left_of(one._database, caller) for caller in (ada, bob)]
    come_since = (trio.current_time() - began) * 1000 / 60 + 1
    assert 200 <= left[0] < 200 + come_since
    assert 500 <= left[1] < 500 + come_since


async def test_use_of_which_nobody_heard_that_it_was_written_is_written_once(database, monkeypatch):
    usage = Usage(database)
    counted = Counted(database, monkeypatch)
    counted.lost = 2
    usage.count("key_ada", "m", 5, 7)
    await usage._write()
    usage.count("key_ada", "m", 1, 1)
    for _ in range(3):
        await usage._write()
    ((_, used),) = report(database)
    assert used == Used(2, 6, 8)


async def test_a_key_that_floods_asks_the_database_one_thing_at_a_time_and_keeps_no_other_out(
    pair, monkeypatch
):
    one, _ = pair
    counted = Counted(one._database, monkeypatch)
    limits = RequestLimiter(one, running=2, waiting=2)
    ada, bob = (Caller(name, name, KeyLimits(requests_per_minute=1)) for name in ("key_ada", "key_bob"))
    refused = []

    async def ask(caller):
        try:
            async with limits.admitted(caller):
                assert caller is bob or not refused
                await trio.sleep(0.3)
        except LimitReached as error:
            refused.append((caller, error.retry_after_s))

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(ask, ada)
        await trio.sleep(0.1)
        nursery.start_soon(ask, bob)
    took = trio.current_time() - began
    assert len(refused) == 99
    assert all(caller is ada and 59 - took < wait_s <= 60 for caller, wait_s in refused)
    assert counted.begun <= 4  # Ada's first, the first that is refused, and Bob's


async def test_who_waits_for_an_answer_that_does_not_come_is_told_with_the_first(pair, monkeypatch):
    one, _ = pair
    asked, ada = [], Caller("key_ada", "Ada", KeyLimits(requests_per_minute=9))

    async def away(function, *arguments):
        asked.append(function)
        await trio.sleep(0.1)
        raise OutOfResources("away")

    monkeypatch.setattr(one._database, "run_short", away)

    async def ask():
        with pytest.raises(OutOfResources, match="away"):
            async with one.admitted(ada):
                pass

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask)
    assert len(asked) == 1


async def test_a_gateway_that_was_taken_for_dead_says_again_what_it_has_going(pair, monkeypatch):
    one, other = pair
    ada = Caller("key_ada", "Ada", KeyLimits(concurrency=1))
    await one._beat()
    async with one.admitted(ada):
        with other._database.transaction() as changes:
            changes.execute("UPDATE gateways SET alive_until = 0")
            changes.execute(
                "INSERT INTO leases (id, caller, background, gateway) VALUES ('lost', 'key_bob', 0, 'nobody')"
            )
        await other._beat()
        await one._beat()
        with pytest.raises(LimitReached, match="1 requests at once"):
            async with other.admitted(ada):
                pass
    async with other.admitted(ada):
        pass
    with other._database.transaction() as found:
        assert found.execute("SELECT count(*) FROM leases").fetchone() == (0,)


def test_a_beat_may_wait_as_long_as_anything_may():
    assert shared_allowances.ALIVE_S > shared_allowances.BEAT_S + 3 * WITHIN_S + CANCEL_S


async def test_nobody_is_answered_without_a_key_as_all_without_one_would_be_one_caller(
    tmp_path, checkpoint, url
):
    with opened(url) as database:
        async with served(tmp_path, checkpoint, database=database) as gateway:
            refused = await gateway.chat()
            assert (refused.status_code, "shoal key create" in refused.text) == (401, True)
            assert gateway.gateway.keys.caller("local") is None
            assert (await gateway.http.get("/health")).status_code == 200


async def test_before_keys_were_read_nobody_is_let_in(url):
    with opened(url) as database:
        ring = KeyRing(database)
        with pytest.raises(OutOfResources, match="cannot read its keys"):
            ring.check_known()
        ring.refresh()
        ring.check_known()
