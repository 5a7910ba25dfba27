"""Responses that are kept: to go on from and to be read again, by the key that asked for them alone."""

from __future__ import annotations

from dataclasses import replace

import openai
import pytest

from shoal.errors import OutOfResources, UsageError
from shoal.gateway.access.keys import KeyLimits, create, revoke
from shoal.gateway.api.response_items import items_of, listed, parsed
from shoal.gateway.errors import NotFound
from shoal.gateway.schema.responses import ResponsesRequest
from shoal.gateway.stored import response_routes, responses
from shoal.gateway.stored.expiry import Keeping
from shoal.gateway.stored.responses import PreviousResponseNotFound, ResponseStore, StoredResponse

from ..conftest import served, user
from ..test_openai import ask
from ..test_responses import CALL, TOOL, thought
from .stored import rows


@pytest.fixture
def store(database, days):
    return ResponseStore(database, Keeping(30, days))


def turn(id, previous=None, text="a"):
    item = {"id": f"msg_{id}", "type": "message", "role": "user", "content": text}
    return StoredResponse(
        id, previous, [item], {"id": id, "output": [{"id": f"out_{id}", "type": "message"}]}
    )


def ids(items):
    return [item["id"] for item in items]


def test_a_conversation_is_the_chain_of_its_turns(store):
    for id, previous in (("r1", None), ("r2", "r1"), ("r3", "r2"), ("other", "r1")):
        assert store.save("key_a", turn(id, previous))
    assert ids(store.history("key_a", "r3")) == ["msg_r1", "out_r1", "msg_r2", "out_r2", "msg_r3", "out_r3"]
    assert ids(store.history("key_a", "other")) == ["msg_r1", "out_r1", "msg_other", "out_other"]


def test_what_another_key_has_stored_is_as_if_it_were_not_there(store):
    store.save("key_a", turn("r1"))
    for refused, error in (
        (store.find, NotFound),
        (store.made_from, NotFound),
        (store.delete, NotFound),
        (store.history, PreviousResponseNotFound),
    ):
        with pytest.raises(error, match="no response 'r1' is stored for this key"):
            refused("key_b", "r1")
    assert store.find("key_a", "r1")["id"] == "r1"


def test_a_conversation_that_has_lost_a_turn_cannot_go_on_but_can_be_read(store):
    for id, previous in (("r1", None), ("r2", "r1"), ("r3", "r2")):
        store.save("key_a", turn(id, previous))
    store.delete("key_a", "r1")
    with pytest.raises(PreviousResponseNotFound, match="'r1'") as caught:
        store.history("key_a", "r3")
    assert caught.value.param == "previous_response_id"
    assert [one.id for one in store.chain("key_a", "r3").turns] == ["r2", "r3"]
    assert ids(store.made_from("key_a", "r3")) == ["msg_r2", "out_r2", "msg_r3"]


def test_use_renews_all_of_a_conversation_and_what_is_unused_expires(store, days, tmp_path):
    store.save("key_a", turn("r1"))
    store.save("key_a", turn("r2", "r1"))
    store.save("key_a", turn("alone"))
    days.passes(29)
    store.history("key_a", "r2")
    days.passes(2)
    assert len(store.history("key_a", "r2")) == 4
    with pytest.raises(NotFound):
        store.find("key_a", "alone")
    assert rows(store.database) == 3
    store.sweep()
    assert rows(store.database) == 2


def test_a_key_has_room_for_so_many_and_the_longest_unused_goes_first(store, days, monkeypatch):
    monkeypatch.setattr(responses, "PER_KEY", 3)
    store.save("key_b", turn("theirs"))
    for id in ("r1", "r2", "r3"):
        store.save("key_a", turn(id))
        days.passes(1)
    store.history("key_a", "r1")
    days.passes(1)
    store.save("key_a", turn("r4"))
    with pytest.raises(NotFound):
        store.find("key_a", "r2")
    assert [store.find("key_a", id)["id"] for id in ("r1", "r3", "r4")] == ["r1", "r3", "r4"]
    assert store.find("key_b", "theirs")


def test_a_key_has_room_for_so_many_bytes(store, days, monkeypatch, tmp_path):
    monkeypatch.setattr(responses, "PER_KEY_BYTES", 1000)
    assert not store.save("key_a", turn("huge", text="x" * 1000))
    for id in ("r1", "r2", "r3"):
        assert store.save("key_a", turn(id, text="x" * 300))
        days.passes(1)
    assert rows(store.database) == 2
    monkeypatch.setattr(responses, "CONVERSATION_BYTES", 200)
    with pytest.raises(UsageError, match="more than 200 bytes"):
        store.history("key_a", "r3")


def test_a_conversation_is_bounded_by_all_that_is_stored_of_it(store, monkeypatch):
    tools = {"tools": [{"type": "function", "name": "f" * 500}]}
    for id, previous in (("r1", None), ("r2", "r1")):
        one = turn(id, previous)
        store.save("key_a", replace(one, response=one.response | tools))
    assert [one.output for one in store.chain("key_a", "r2").turns] == [
        [{"id": f"out_{id}", "type": "message"}] for id in ("r1", "r2")
    ]
    monkeypatch.setattr(responses, "CONVERSATION_BYTES", 1000)
    assert len(store.history("key_a", "r1")) == 2
    with pytest.raises(UsageError, match="more than 1000 bytes"):
        store.history("key_a", "r2")


def test_a_revoked_key_leaves_nothing_behind(store, tmp_path):
    _, mine = create(store.database, "mine", KeyLimits(), admin=False)
    store.save(mine.id, turn("r1", text="a secret that was told"))
    store.save("key_b", turn("theirs"))
    revoke(store.database, "mine")
    assert rows(store.database) == 1
    if not store.database.shared:  # what PostgreSQL leaves in its files is its administrator's
        assert b"a secret that was told" not in (tmp_path / "gateway.db").read_bytes()


def test_items_are_read_again_as_they_were_brought():
    result = {
        "type": "function_call_output",
        "call_id": "c1",
        "output": [{"type": "input_text", "text": "s"}],
    }
    said = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}], "id": "msg_own"}
    given = [user("Rome?"), thought("Hm.", id="rs_own"), CALL, result, said]
    body = ResponsesRequest.model_validate({"model": "m", "input": given})
    shown = [listed(item) for item in items_of(body.input)]
    assert [item["type"] for item in shown] == [
        "message",
        "reasoning",
        "function_call",
        "function_call_output",
        "message",
    ]
    assert (shown[1]["id"], shown[4]["id"]) == ("rs_own", "msg_own")
    assert len(set(ids(shown))) == 5
    again = parsed(shown)
    assert [listed(item) for item in again] == shown
    assert [m.role for m in (again[0], again[4])] == ["user", "assistant"]
    assert again[4].content[0].text == "No."


async def test_openais_client_goes_on_from_what_is_stored(gateway):
    def use(client, base):
        asked = base | {"max_output_tokens": 6}
        first = client.responses.create(input="My name is Ada.", instructions="Be short.", **asked)
        second = client.responses.create(input="Who am I?", previous_response_id=first.id, **asked)
        said = {"role": "assistant", "content": first.output_text}
        whole = client.responses.create(
            input=[user("My name is Ada."), said, user("Who am I?")], store=False, **asked
        )
        kept = client.responses.retrieve(second.id)
        newest = list(client.responses.input_items.list(second.id))
        oldest = list(client.responses.input_items.list(second.id, order="asc", limit=1))
        client.responses.delete(first.id)
        gone = []
        for call, error in (
            (lambda: client.responses.retrieve(first.id), openai.NotFoundError),
            (
                lambda: client.responses.create(input="And?", previous_response_id=second.id, **asked),
                openai.BadRequestError,
            ),
            (lambda: client.responses.retrieve(whole.id), openai.NotFoundError),
        ):
            with pytest.raises(error) as caught:
                call()
            gone.append(caught.value)
        return first, second, whole, kept, newest, oldest, gone

    first, second, whole, kept, newest, oldest, gone = await ask(gateway, use)
    assert (first.store, second.store, whole.store) == (True, True, False)
    assert (first.previous_response_id, second.previous_response_id) == (None, first.id)
    # The same tokens went in as when the client brings all of it: earlier instructions are not carried over.
    assert (second.usage.input_tokens, second.output_text) == (whole.usage.input_tokens, whole.output_text)
    assert kept == second
    assert [item.content[0].text for item in newest] == ["Who am I?", first.output_text, "My name is Ada."]
    assert ids(i.model_dump() for i in oldest) == ids(i.model_dump() for i in newest[::-1])
    assert gone[1].code == "previous_response_not_found"
    assert gone[1].param == "previous_response_id"


async def test_a_streamed_response_is_stored_before_its_last_event(gateway):
    def use(client, base):
        with client.responses.stream(input="hello", max_output_tokens=6, **base) as stream:
            for event in stream:
                if event.type in ("response.completed", "response.incomplete"):
                    return event.response, client.responses.retrieve(event.response.id)
        return None

    told, kept = await ask(gateway, use)
    assert told.store is True
    assert kept.to_dict() == told.to_dict()


async def test_calls_and_their_results_are_part_of_the_chain(gateway):
    def use(client, base):
        asked = {"tools": [TOOL], "max_output_tokens": 200} | base
        first = client.responses.create(
            input="Rome?", tool_choice="required", parallel_tool_calls=False, **asked
        )
        (call,) = first.output
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
        second = client.responses.create(
            input=[result], previous_response_id=first.id, **asked | {"max_output_tokens": 4}
        )
        return call, list(client.responses.input_items.list(second.id, order="asc"))

    call, items = await ask(gateway, use)
    assert [item.type for item in items] == ["message", "function_call", "function_call_output"]
    assert (items[1].id, items[1].arguments) == (call.id, call.arguments)


async def test_another_keys_responses_are_404(gateway):
    path = gateway.gateway.database
    keys = [create(path, name, KeyLimits(), admin=False)[0] for name in ("ada", "bob")]
    gateway.gateway.keys.refresh()
    ada, bob = ({"authorization": f"Bearer {key}"} for key in keys)
    asked = {"model": gateway.model, "input": "a secret", "max_output_tokens": 4}
    id = (await gateway.http.post("/v1/responses", json=asked, headers=ada)).json()["id"]
    for method, where in (("GET", id), ("DELETE", id), ("GET", f"{id}/input_items")):
        answer = await gateway.http.request(method, f"/v1/responses/{where}", headers=bob)
        assert answer.status_code == 404
        assert "secret" not in answer.text
    stolen = await gateway.http.post("/v1/responses", json=asked | {"previous_response_id": id}, headers=bob)
    assert stolen.status_code == 400
    assert (await gateway.http.get(f"/v1/responses/{id}")).status_code == 401
    assert (await gateway.http.get(f"/v1/responses/{id}", headers=ada)).status_code == 200


async def test_a_stored_response_is_not_streamed_again(shared):
    asked = {"model": shared.model, "input": "a", "max_output_tokens": 2}
    id = (await shared.http.post("/v1/responses", json=asked)).json()["id"]
    answer = await shared.http.get(f"/v1/responses/{id}?stream=true")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "stream")


async def test_a_conversation_of_too_many_items_cannot_go_on(shared, monkeypatch):
    monkeypatch.setattr(response_routes, "MAX_MESSAGES", 2)
    asked = {"model": shared.model, "input": "a", "max_output_tokens": 2}
    first = (await shared.http.post("/v1/responses", json=asked)).json()["id"]
    second = await shared.http.post("/v1/responses", json=asked | {"previous_response_id": first})
    assert second.status_code == 200
    third = {"previous_response_id": second.json()["id"]}
    answer = await shared.http.post("/v1/responses", json=asked | third)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "previous_response_id")
    assert "more than 2 items" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("order=up", "order"),
        ("after=x", "after"),
    ],
)
async def test_a_page_that_there_is_not_is_refused_by_its_field(shared, query, field):
    asked = {"model": shared.model, "input": "a", "max_output_tokens": 2}
    id = (await shared.http.post("/v1/responses", json=asked)).json()["id"]
    answer = await shared.http.get(f"/v1/responses/{id}/input_items?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


async def test_a_gateway_that_keeps_nothing_says_so(tmp_path, checkpoint):
    async with served(tmp_path, checkpoint, keeping=Keeping(0)) as gateway:
        asked = {"model": gateway.model, "input": "a", "max_output_tokens": 4, "store": True}
        said = (await gateway.http.post("/v1/responses", json=asked)).json()
        assert said["store"] is False
        answer = await gateway.http.post("/v1/responses", json=asked | {"previous_response_id": said["id"]})
        assert answer.status_code == 400
        assert "store_days is 0" in answer.json()["error"]["message"]
        assert rows(gateway.gateway.database) == 0


async def test_an_answer_that_cannot_be_stored_says_so_and_is_given(gateway, monkeypatch):
    def full(caller, turn):
        raise OutOfResources("the disk is full")

    monkeypatch.setattr(gateway.gateway.responses, "save", full)
    asked = {"model": gateway.model, "input": "a", "max_output_tokens": 4}
    answer = await gateway.http.post("/v1/responses", json=asked)
    assert (answer.status_code, answer.json()["store"]) == (200, False)
