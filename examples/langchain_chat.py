"""LangChain: pip install langchain-openai."""

import os

from langchain_openai import ChatOpenAI
from openai import OpenAI

model = ChatOpenAI(model=OpenAI().models.list().data[0].id, max_tokens=16, temperature=0)
print(model.invoke([("system", "Be brief."), ("human", "What is a shoal?")]).text)
for chunk in model.stream("What is the sea?"):
    print(chunk.text, end="", flush=True)
print(f"\nby {os.environ['OPENAI_BASE_URL']}")
