"""OpenAI's Agents SDK: pip install openai-agents. The agent calls a function, then answers."""

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI, OpenAI

TIDES = {"Brest": "18:10", "Hamburg": "03:42", "Porto": "16:55"}


@function_tool
def high_tide(port: str) -> str:
    """The time of the next high tide in a port."""
    return TIDES.get(port, f"unknown; the known ports are {', '.join(TIDES)}")


set_tracing_disabled(True)  # traces would go to OpenAI
model = OpenAIChatCompletionsModel(OpenAI().models.list().data[0].id, AsyncOpenAI())
# The first turn must call the function; the SDK leaves the choice to the model from then on.
settings = ModelSettings(tool_choice="required", parallel_tool_calls=False, max_tokens=64, temperature=0)
agent = Agent("tides", instructions="Be brief.", model=model, model_settings=settings, tools=[high_tide])
answer = Runner.run_sync(agent, "When is high tide in Hamburg?", max_turns=4)
print("turns:", ", ".join(item.type for item in answer.new_items))
print(answer.final_output)
