"""Chat templates are programs that come with a model. They run in a process of their own, on a short leash.

The sandbox of Jinja, set up as in transformers, keeps a template from reaching out; the process's limits and
a deadline keep it from never ending, or from filling the memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from shoal.errors import BadWeights, UsageError

DEADLINE_S = 5.0
"""For one rendering, the start of the process included. An honest template takes a millisecond."""
MAX_BYTES = 8 << 20
"""Of a template with its messages, and of what it renders to."""


@dataclass(frozen=True, slots=True)
class Rendered:
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
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, answer: bool = True, **options: Any
    ) -> Rendered:
        """The prompt for ``messages``. From any thread.

        Args:
            answer: whether the beginning of an answer is put behind them.
            options: what the template may look at, for example ``enable_thinking``.

        Raises:
            UsageError: the messages are too large, no JSON, or the template refuses them.
            BadWeights: the template does not end in time, or takes too much memory.
        """
        try:
            request = json.dumps(
                {
                    "template": self._template,
                    "own": {**self._variables, "add_generation_prompt": answer},
                    "given": options,
                    "messages": list(messages),
                }
            ).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"the messages are not plain JSON ({error})") from error
        if len(request) > MAX_BYTES:
            raise UsageError(f"the messages are larger than the {MAX_BYTES >> 20} MiB allowed")
        with self._lock:
            line = self._exchange(request)
        try:
            found = cast(dict[str, Any], json.loads(line))
        except ValueError as error:
            raise BadWeights(
                f"the chat template did not end within {self._deadline_s:.0f} s, or filled its memory",
                check="where this model comes from",
            ) from error
        if "text" not in found:
            raise UsageError(
                f"the model's chat template refuses the messages: {found.get('error', '')[:300]}",
                check="the roles and their order",
            )
        return _read(found)

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _exchange(self, request: bytes) -> bytes:
        """One line out, one line back; no line back when the process was ended or failed."""
        if self._process is None or self._process.poll() is not None:
            # -I: no environment, no user packages, nothing from the working folder.
            command = [sys.executable, "-I", str(Path(__file__).with_name("template_child.py"))]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C is for us, and not for what renders
            )
        process = self._process
        timer = threading.Timer(self._deadline_s, process.kill)
        timer.start()
        try:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(request + b"\n")
            process.stdin.flush()
            line = process.stdout.readline(MAX_BYTES * 14)  # two texts, in which JSON may write \u00XX
        except OSError:  # it died while we wrote
            line = b""
        finally:
            timer.cancel()
        if not line.endswith(b"\n"):
            self._end()
        return line

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def __del__(self) -> None:
        self._end()


def _read(found: dict[str, Any]) -> Rendered:
    """What the process answered."""
    text: str = found["text"]
    if "unmarked" in found:
        return Rendered(text, None, (), user=True, system=True, printed=False)
    return Rendered(
        text,
        found.get("marked", text),
        tuple((start, end) for start, end in found["spans"]),
        user=found["user"],
        system=found["system"],
        printed=found["printed"],
    )
