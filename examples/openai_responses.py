"""The Responses API, at once and as it comes. Nothing is kept between two calls."""

from openai import OpenAI

client = OpenAI()
model = client.models.list().data[0].id
answer = client.responses.create(model=model, input="What is a shoal?", max_output_tokens=16, temperature=0)
print(answer.output_text)
events = client.responses.create(
    model=model, input="What is a shoal?", max_output_tokens=16, temperature=0, stream=True
)
for event in events:
    if event.type == "response.output_text.delta":
        print(event.delta, end="", flush=True)
print()
