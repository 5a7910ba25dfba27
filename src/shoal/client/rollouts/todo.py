"""Which sample is made next. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Sequence

from shoal.client.rollouts.prompts import RolloutPrompt


class PromptSamples:
    """The samples of one prompt that are still to be made."""

    def __init__(self, prompt: RolloutPrompt, left: Sequence[int]) -> None:
        self.prompt = prompt
        self._left = deque(left)

    def __len__(self) -> int:
        return len(self._left)

    def take(self) -> int | None:
        """The next, ``None`` where there is none."""
        return self._left.popleft() if self._left else None

    def put_back(self, sample: int) -> None:
        """It came to nothing."""
        self._left.append(sample)


class SamplesToMake:
    """All samples of a run that are not made yet.

    A session makes the samples of one prompt one after another, and so computes the prompt once. So each
    session begins with a prompt of its own while there are any, and helps with that which has most to do
    afterwards.

    Args:
        made: samples that are there, by the prompt's line and their number.
    """

    def __init__(
        self, prompts: Sequence[RolloutPrompt], samples: int, made: Container[tuple[int, int]]
    ) -> None:
        self._fresh = deque[PromptSamples]()
        self._begun: list[PromptSamples] = []
        for prompt in prompts:
            left = [n for n in range(samples) if (prompt.line, n) not in made]
            if left:
                self._fresh.append(PromptSamples(prompt, left))

    @property
    def left(self) -> bool:
        """Whether any wait to be begun."""
        return bool(self._fresh) or any(self._begun)

    def take(self) -> PromptSamples | None:
        """A prompt of which samples are to be made; ``None`` where all are made or begun."""
        self._begun = [samples for samples in self._begun if samples]
        if self._fresh:
            self._begun.append(self._fresh.popleft())
            return self._begun[-1]
        return max(self._begun, key=len, default=None)

    def put_back(self, samples: PromptSamples, sample: int) -> None:
        """One that was begun has come to nothing: it is made later."""
        samples.put_back(sample)
        if samples not in self._begun:
            self._begun.append(samples)
