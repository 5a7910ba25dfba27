"""Which of some texts says most nearly the same as another: by embeddings, from a model made for them.

python openai_embeddings.py [MODEL]
"""

import math
import sys

from openai import OpenAI

MODEL = sys.argv[1] if len(sys.argv) > 1 else "sentence-transformers/all-MiniLM-L6-v2"
QUESTION = "How do fish swim together?"
TEXTS = ["A shoal is a group of fish.", "The tide comes in twice a day.", "Bread is baked of flour."]

client = OpenAI()
answer = client.embeddings.create(model=MODEL, input=[QUESTION, *TEXTS])
question, *others = (item.embedding for item in answer.data)


def likeness(vector: list[float]) -> float:
    """The cosine of the angle to the question's."""
    return sum(a * b for a, b in zip(question, vector, strict=True)) / (
        math.hypot(*question) * math.hypot(*vector)
    )


for vector, text in sorted(zip(others, TEXTS, strict=True), key=lambda pair: -likeness(pair[0])):
    print(f"{likeness(vector):.6f} {text}")
print(f"{answer.usage.prompt_tokens} tokens, {len(question)} numbers each")
