"""What the lab asks when the plan does not say."""

from __future__ import annotations

from random import Random

from shoal.errors import BadWeights, UsageError
from shoal.models.store.local_model import LocalModel
from shoal.models.text.codec import TextCodec
from shoal.testing.lab.plan import LabPlan, LabPrompt

SHORT = (
    "Once upon a time there was a fisherman who lived with his wife by the sea, and every morning",
    "The five largest cities of Europe, with what each of them is known for, are the following:",
)
LONG = (
    "A shoal is any group of fish that stay together for social reasons, and if the group swims in the same "
    "direction in a coordinated manner, it is schooling. About one quarter of fish species shoal all their "
    "lives, and about one half shoal for part of their lives. Fish derive many benefits from shoaling "
    "behaviour, including defence against predators, through better detection and by diluting the chance of "
    "being caught, enhanced success in finding food, and higher success in finding a mate. It is also likely "
    "that fish benefit from membership of a shoal through increased hydrodynamic efficiency. Fish use many "
    "traits to choose shoalmates. Generally they prefer larger shoals, shoalmates of their own species, "
    "shoalmates similar in size and appearance to themselves, healthy fish, and kin when recognised. "
    "The most surprising of these, to those who study them, is"
)
IDS = (12, 150)
"""Tokens of the two kinds of prompt for a model that has no tokenizer."""


def prompts_of(model: LocalModel, plan: LabPlan) -> list[LabPrompt]:
    """The plan's prompts, or built-in ones that fit the model: token ids where it has no tokenizer.

    Raises:
        UsageError: the model takes no prompt and an answer of ``plan.max_tokens``.
    """
    if plan.prompts:
        return list(plan.prompts)
    room = model.shape.context - plan.max_tokens
    if room < 1:
        raise UsageError(
            f"{model.name} takes {model.shape.context} tokens in all, and max_tokens is {plan.max_tokens}",
            check="set a smaller max_tokens in the plan",
        )
    try:
        codec = TextCodec.load(model.path)
    except BadWeights:
        random = Random(model.digest)
        counts = [min(count, room) for count in (IDS[0], *IDS)]
        return [[random.randrange(model.shape.vocab_size) for _ in range(count)] for count in counts]
    return [text for text in (*SHORT, LONG) if len(codec.encode(text)) <= room] or [codec.encode(LONG)[:room]]
