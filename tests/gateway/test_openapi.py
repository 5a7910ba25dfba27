"""Requests made at random of our own OpenAPI document: whatever comes, no answer is a 5xx."""

from __future__ import annotations

from contextlib import suppress

import hypothesis
import schemathesis
import trio

SETTINGS = hypothesis.settings(
    max_examples=15,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    derandomize=True,
)


async def test_no_request_that_the_document_describes_or_forbids_is_a_5xx(gateway):
    document = (await gateway.http.get("/openapi.json")).json()
    seen = []

    def ask_all():
        schema = schemathesis.openapi.from_dict(document)
        for operation in schema.get_all_operations():
            for mode in schemathesis.GenerationMode:

                @SETTINGS
                @hypothesis.given(case=operation.ok().as_strategy(generation_mode=mode))
                def ask(case):
                    answer = case.call(base_url=gateway.url, timeout=30)
                    seen.append(answer.status_code)
                    assert answer.status_code < 500, (case.path, case.body, answer.text)

                with suppress(hypothesis.errors.Unsatisfiable):  # nothing there can be wrong
                    ask()

    await trio.to_thread.run_sync(ask_all)
    assert {400, 404} & set(seen)
    assert 200 in seen
    assert (await gateway.chat()).status_code == 200
