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
from pathlib import Path
from typing import Any, cast

from shoal.errors import BadWeights, UsageError

DEADLINE_S = 5.0
"""For one rendering, the start of the process included. An honest template takes a millisecond."""
MAX_BYTES = 8 << 20
"""Of a template with its messages, and of what it renders to."""


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

    def render(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        """The prompt for ``messages``, with the beginning of the answer behind them. From any thread.

        Args:
            options: what the template may look at, for example ``enable_thinking``.

        Raises:
            UsageError: the messages are too large, no JSON, or the template refuses them.
            BadWeights: the template does not end in time, or takes too much memory.
        """
        try:
            request = json.dumps(
                {
                    "template": self._template,
                    "values": {
                        **self._variables,
                        **options,
                        "messages": list(messages),
                        "add_generation_prompt": True,
                    },
                }
            ).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"the messages are not plain JSON ({error})") from error
        if len(request) > MAX_BYTES:
            raise UsageError(f"the messages are larger than the {MAX_BYTES >> 20} MiB allowed")
        with self._lock:
            line = self._exchange(request)
        try:
            answer = cast(dict[str, str], json.loads(line))
        except ValueError as error:
            raise BadWeights(
                f"the chat template did not end within {self._deadline_s:.0f} s, or filled its memory",
                check="where this model comes from",
            ) from error
        if "text" not in answer:
            raise UsageError(
                f"the model's chat template refuses the messages: {answer.get('error', '')[:300]}",
                check="the roles and their order",
            )
        return answer["text"]

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
            line = process.stdout.readline(MAX_BYTES * 6)  # JSON may write a byte as \u00XX
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
