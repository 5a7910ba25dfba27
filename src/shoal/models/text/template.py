"""Chat templates are programs that come with a model. They run in a process of their own, on a short leash.

The sandbox of Jinja, set up as in transformers, keeps a template from reaching out; the process's limits and
a deadline keep it from never ending, or from filling the memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from shoal.errors import BadWeights, UsageError
from shoal.models.untrusted.child import Child, Ended

DEADLINE_S = 5.0
"""For one rendering, the start of the process included. An honest template takes a millisecond."""
MAX_BYTES = 8 << 20
"""Of a template with its messages, and of what it renders to."""


@dataclass(frozen=True, slots=True)
class RenderedTemplate:
    """A conversation as the template has put it, and whose words are where."""

    text: str
    """The prompt."""
    marked: str | None
    """What the template makes of the same conversation when all that is not its own is marked, without the
    marks: ``text`` again, unless the template looks at its input in a way that marks do not pass. ``None``
    where it fails on marks."""
    foreign: tuple[tuple[int, int], ...]
    """The parts of ``marked``, from and to, that are not the template's own words, in order."""
    user: bool
    """Whether something of the last user message is in it."""
    system: bool
    """Whether something of the system's message is in it."""
    printed: bool
    """Whether parts of a message were written out as Python shows a list."""


class TemplateRenderer:
    """Renders one model's chat template. Its process starts with the first rendering and is kept."""

    def __init__(
        self, template: str, variables: Mapping[str, str], *, deadline_s: float = DEADLINE_S
    ) -> None:
        self._template = template
        self._variables = dict(variables)
        self._deadline_s = deadline_s
        # As a file: nothing of Shoal is imported. Two texts come back, in which JSON may write \\u00XX.
        program = Path(__file__).with_name("template_child.py")
        self._child = Child([str(program)], longest_answer=MAX_BYTES * 14)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        options: Mapping[str, Any] = MappingProxyType({}),
        *,
        answer: bool = True,
    ) -> RenderedTemplate:
        """The prompt for ``messages``. From any thread.

        Args:
            options: what the template may look at, for example ``enable_thinking``.
            answer: whether the beginning of an answer is put behind them.

        Raises:
            UsageError: the messages are too large, no JSON, or the template refuses them.
            BadWeights: the template does not end in time, or takes too much memory.
            Busy: too many others wait for it.
        """
        try:
            request = json.dumps(
                {
                    "template": self._template,
                    "own": {**self._variables, "add_generation_prompt": answer},
                    "given": dict(options),
                    "messages": list(messages),
                }
            ).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"the messages are not plain JSON ({error})") from error
        if len(request) > MAX_BYTES:
            raise UsageError(f"the messages are larger than the {MAX_BYTES >> 20} MiB allowed")
        try:
            found = cast(dict[str, Any], json.loads(self._child.ask(request, self._deadline_s)))
        except (Ended, ValueError) as error:
            raise BadWeights(
                f"the chat template did not end within {self._deadline_s:.0f} s, or filled its memory",
                check="check that the model comes from a source you trust",
            ) from error
        if "text" not in found:
            raise UsageError(
                f"the model's chat template refuses the messages: {found.get('error', '')[:300]}",
                check="check the roles of the messages and their order",
            )
        return _read(found)

    @property
    def pid(self) -> int | None:
        """The process as it is now, if there is one."""
        return self._child.pid

    def close(self) -> None:
        """End the process."""
        self._child.close()


def _read(found: dict[str, Any]) -> RenderedTemplate:
    """What the process answered."""
    text: str = found["text"]
    if "unmarked" in found:
        return RenderedTemplate(text, None, (), user=True, system=True, printed=False)
    return RenderedTemplate(
        text,
        found.get("marked", text),
        tuple((start, end) for start, end in found["spans"]),
        user=found["user"],
        system=found["system"],
        printed=found["printed"],
    )
