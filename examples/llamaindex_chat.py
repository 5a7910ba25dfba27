"""LlamaIndex: pip install llama-index-llms-openai-like."""

import os

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from openai import OpenAI

model = OpenAILike(
    model=OpenAI().models.list().data[0].id,
    api_base=os.environ["OPENAI_BASE_URL"],
    api_key=os.environ["OPENAI_API_KEY"],
    is_chat_model=True,
    max_tokens=16,
    temperature=0,
)
messages = [
    ChatMessage(role="system", content="Be brief."),
    ChatMessage(role="user", content="What is a shoal?"),
]
print(model.chat(messages).message.content)
for piece in model.stream_chat([ChatMessage(role="user", content="What is the sea?")]):
    print(piece.delta, end="", flush=True)
print()
