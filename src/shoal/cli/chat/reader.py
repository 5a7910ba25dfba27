"""What the user types, line by line: edited on a terminal, as it comes from a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO

import trio

from shoal.errors import UsageError
from shoal.tasks import one_error

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.input import Input
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.output import Output

MAX_LINE = 1 << 20
"""Characters of one question; a longer one fits no model, and is refused rather than cut."""
ASK_AGAIN_S = 0.02


class Reader(Protocol):
    """Where questions come from."""

    async def read(self) -> str | None:
        """The next question that is not blank; ``None`` when there is none any more.

        Raises:
            KeyboardInterrupt: Ctrl-C on an empty line.
            UsageError: what comes is no text, or has no end in sight.
        """
        ...


def reader(history: Path, words: Sequence[str] = ()) -> Reader:
    """The reader for this process's stdin.

    Args:
        history: the file that keeps what was typed on a terminal.
        words: what Tab completes at the beginning of a line.
    """
    if sys.stdin.isatty() and sys.stderr.isatty():
        return TerminalReader(history, words)
    return LineReader(sys.stdin)


class LineReader:
    """Lines of a pipe. One that ends with a backslash goes on in the next."""

    def __init__(self, stdin: TextIO) -> None:
        self._stdin = stdin

    async def read(self) -> str | None:
        """See :class:`Reader`."""
        while True:
            text = await trio.to_thread.run_sync(self._next, abandon_on_cancel=True)
            if text is None or text.strip():
                return text

    def _next(self) -> str | None:
        lines: list[str] = []
        while line := self._line():
            text = line.removesuffix("\n")
            lines.append(text.removesuffix("\\"))
            if not text.endswith("\\"):
                break
        return "\n".join(lines) if lines else None

    def _line(self) -> str:
        try:
            line = self._stdin.readline(MAX_LINE + 1)
        except UnicodeDecodeError as error:
            raise UsageError("stdin is not UTF-8 text", check="check the text that is piped in") from error
        if len(line) > MAX_LINE:
            raise UsageError(f"a line on stdin is longer than {MAX_LINE >> 20} Mi characters")
        return line


class TerminalReader:
    """Lines as they are edited on a terminal, with what was typed before on the arrow keys.

    It runs on a thread, for prompt_toolkit has a loop of its own. The prompt goes to stderr, so that stdout
    carries the answers alone.
    """

    def __init__(
        self,
        history: Path,
        words: Sequence[str] = (),
        *,
        keys: Input | None = None,
        screen: Output | None = None,
    ) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.output import create_output

        from shoal.cli.chat.history import KeptHistory

        self._session: PromptSession[str] = PromptSession(
            "> ",
            multiline=True,
            prompt_continuation="… ",
            history=KeptHistory(history),
            completer=WordCompleter(list(words), sentence=True),
            reserve_space_for_menu=min(len(words), 4),
            key_bindings=_bindings(),
            enable_suspend=True,
            input=keys,
            output=screen or create_output(stdout=sys.stderr),
        )

    async def read(self) -> str | None:
        """See :class:`Reader`. When it is cancelled, the terminal is as it was before it returns."""
        while True:
            text = await self._prompt()
            if text is None or text.strip():
                return text

    async def _prompt(self) -> str | None:
        typed: list[str] = []
        over = trio.Event()

        async def ask() -> None:
            try:
                with trio.CancelScope(shield=True):
                    typed.append(await trio.to_thread.run_sync(self._session.prompt))
            except EOFError:
                pass  # Ctrl-D: nothing was typed
            finally:
                over.set()

        with one_error():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                try:
                    await over.wait()
                finally:
                    with trio.CancelScope(shield=True):
                        await self._left(over)
        return typed[0] if typed else None

    async def _left(self, over: trio.Event) -> None:
        while not over.is_set():
            # The thread may be about to begin, and cannot be asked to end before it has.
            if self._session.app.loop is not None and self._session.app.is_running:
                self._session.app.loop.call_soon_threadsafe(self._leave)
            await trio.sleep(ASK_AGAIN_S)

    def _leave(self) -> None:
        with suppress(Exception):  # it was just left by a key: prompt_toolkit raises a bare Exception
            self._session.app.exit(result="")


def _bindings() -> KeyBindings:
    """Enter sends, unless the line goes on; Alt-Enter begins a line; Ctrl-C empties the line, or ends."""
    from prompt_toolkit.key_binding import KeyBindings

    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.char_before_cursor == "\\" and buffer.document.is_cursor_at_the_end:
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @bindings.add("c-c")
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt())

    return bindings
