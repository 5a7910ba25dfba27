"""LangChain's standard tests of a chat model, against the gateway that ``OPENAI_BASE_URL`` names.

Run by ``test_langchain.py`` with LangChain's own Python: it is no test of ours by its name.
"""

from __future__ import annotations

import os

import pytest
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

CLEVER = "a tiny model calls no tool of its own accord"

OBEDIENT = "nor does it give the JSON fields that only the prompt names"


class TestGateway(ChatModelIntegrationTests):
    chat_model_class = ChatOpenAI
    supports_json_mode = True
    model_override_value = os.environ["SHOAL_MODEL"]

    @property
    def chat_model_params(self):
        return {"model": os.environ["SHOAL_MODEL"], "temperature": 0, "stream_usage": True, "max_tokens": 400}

    @pytest.mark.xfail(reason=OBEDIENT, strict=True)
    def test_json_mode(self, model):
        super().test_json_mode(model)

    @pytest.mark.xfail(reason=CLEVER, strict=True)
    def test_agent_loop(self, model):
        super().test_agent_loop(model)
