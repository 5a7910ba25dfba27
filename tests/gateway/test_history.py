"""What the page plots: a day of the swarm, and what each key has used by day."""

from __future__ import annotations

import time

import pytest
import trio

from shoal.gateway.access import usage
from shoal.gateway.access.keys import KeyLimits, create
from shoal.gateway.access.usage import Account, Usage, Used, usage_days
from shoal.gateway.database.once import WriteNumber
from shoal.gateway.page.history import KEPT_MINUTES, MINUTE_S, Moment, Sight, SwarmHistory

from .conftest import kept_in, served


class Watched:
    """A swarm that is looked at, and the minute in which that happens."""

    def __init__(self) -> None:
        self.minute = 1000
        self.seen: Sight | None = Sight(3, 1.0, 0)

    def history(self, database) -> SwarmHistory:
        return SwarmHistory(database, lambda: self.seen, lambda: self.minute * MINUTE_S + 0.5)


async def test_a_moment_has_the_tokens_of_its_minute_and_outlives_a_restart(database):
    watched = Watched()
    history = watched.history(database)
    for minute, tokens in ((1000, 40), (1001, 100), (1003, 100)):
        watched.minute, watched.seen = minute, Sight(3, 0.5, tokens)
        await history.note()
    kept = [Moment(1000, 3, 0.5, 40), Moment(1001, 3, 0.5, 60), Moment(1003, 3, 0.5, 0)]
    assert history.shown() == kept
    watched.seen = Sight(2, 1.0, 7)  # counted from 0 again
    await watched.history(database).note()
    assert history.shown() == [*kept[:2], Moment(1003, 2, 1.0, 7)]


async def test_a_day_is_kept_and_no_more(database):
    watched = Watched()
    history = watched.history(database)
    await history.note()
    watched.minute += KEPT_MINUTES - 1
    await history.note()
    assert [moment.minute for moment in history.shown()] == [1000, watched.minute]
    watched.minute += 1
    assert [moment.minute for moment in history.shown()] == [watched.minute - 1]
    await history.note()
    assert len(history.shown()) == 2


async def test_before_the_model_is_here_nothing_is_noted(database):
    watched = Watched()
    watched.seen = None
    history = watched.history(database)
    await history.note()
    assert history.shown() == []


async def test_a_full_disk_costs_a_moment_and_its_tokens_count_in_the_next(tmp_path, caplog):
    watched = Watched()
    folder = tmp_path / "full"
    folder.write_text("a file is where the folder should be")
    history = watched.history(kept_in(folder))
    watched.seen = Sight(3, 1.0, 5)
    await history.note()
    assert "history is not written" in caplog.text
    folder.unlink()
    await history.note()
    assert history.shown() == [Moment(1000, 3, 1.0, 5)]


def test_use_is_added_up_by_key_and_day_of_whoever_used_most_first(database, monkeypatch):
    days = usage_days(30 * 86_400 + 5)
    assert (len(days), days[0], days[-1]) == (30, "1970-01-02", "1970-01-31")
    used = [("1970-01-01", "ada", "m", 9), ("1970-01-02", "bob", "m", 1), ("1970-01-31", "ada", "m", 2)]
    used += [("1970-01-31", "ada", "n", 3)]
    usage._add(
        database,
        WriteNumber("a", 1),
        {Account(day, who, model): Used(1, n, 10) for day, who, model, n in used},
    )
    by_key = Usage(database).by_key(days, None)
    assert list(by_key) == ["ada", "bob"]
    assert by_key == {"ada": [0] * 29 + [25], "bob": [11] + [0] * 29}
    assert list(Usage(database).by_key(days, "bob")) == ["bob"]
    monkeypatch.setattr(usage, "SHOWN_KEYS", 1)
    assert list(Usage(database).by_key(days, None)) == ["ada"]


async def test_the_page_is_told_both(gateway):
    await gateway.chat(max_tokens=4)
    await gateway.gateway.history.note()
    day = (await gateway.http.get("/api/history")).json()
    (moment,) = day["moments"]
    assert (moment["peers"], moment["covered"]) == (3, 1.0)
    assert 0 < moment["tokens"] <= 4
    await gateway.gateway.usage._write()
    used = (await gateway.http.get("/api/usage")).json()
    assert used["days"] == usage_days(time.time())
    (local,) = used["keys"]
    assert (local["name"], local["tokens"][-1] > 4) == ("this machine", True)


@pytest.mark.parametrize(("admin", "names"), [(True, {"Ada", "Bob"}), (False, {"Ada"})])
async def test_a_key_sees_its_own_use_and_an_administrators_all(tmp_path, checkpoint, admin, names):
    path = kept_in(tmp_path)
    today = usage_days(time.time())[-1]
    key, ada = create(path, "Ada", KeyLimits(), admin=admin)
    _, bob = create(path, "Bob", KeyLimits(), admin=False)
    usage._add(
        path, WriteNumber("a", 1), {Account(today, caller.id, "m"): Used(1, 1, 1) for caller in (ada, bob)}
    )
    with trio.fail_after(60):
        async with served(tmp_path, checkpoint, database=path) as gateway:
            answer = await gateway.http.get("/api/usage", headers={"authorization": f"Bearer {key}"})
            assert {row["name"] for row in answer.json()["keys"]} == names
            assert (await gateway.http.get("/api/history")).status_code == 401
