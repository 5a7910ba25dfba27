"""LiteLLM: pip install litellm. Models of an OpenAI-compatible server begin with openai/."""

import os

import litellm
from openai import OpenAI

model = OpenAI().models.list().data[0].id
answer = litellm.completion(
    model=f"openai/{model}",
    api_base=os.environ["OPENAI_BASE_URL"],
    api_key=os.environ["OPENAI_API_KEY"],
    messages=[{"role": "user", "content": "What is a shoal?"}],
    max_tokens=16,
    temperature=0,
)
print(answer.choices[0].message.content)
