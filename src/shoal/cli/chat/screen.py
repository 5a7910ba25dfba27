"""Where an answer is shown as it comes: as it is, or as Markdown on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from shoal.cli.output import printable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.live import Live

REDRAWS_PER_S = 8
"""Often enough to read along; more would take time from the model's ends, which run in this process."""


class Screen(Protocol):
    """Takes the pieces of one answer."""

    def write(self, text: str) -> None:
        """Show one more piece."""
        ...

    def close(self) -> None:
        """The answer is over, or was cut off."""
        ...


class PlainScreen:
    """Stdout as it is. Into a pipe goes what the model said; on a terminal, what cannot drive it."""

    def __init__(self) -> None:
        self._begun = False

    def write(self, text: str) -> None:
        """See :class:`Screen`."""
        self._begun = True
        sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()

    def close(self) -> None:
        """See :class:`Screen`."""
        if self._begun:
            self.write("\n")


class MarkdownScreen:
    """Markdown on a terminal. Complete blocks are printed for good; the last is redrawn as it grows."""

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console

        from shoal.cli.chat.unfolding import Unfolding

        self._console = console or Console(highlight=False)
        self._text = Unfolding()
        self._live: Live | None = None

    def write(self, text: str) -> None:
        """See :class:`Screen`."""
        done = self._text.push(printable(text))
        if self._live is None:
            self._live = self._begin()
        if done:
            self._console.print(_markdown(done), "")

    def close(self) -> None:
        """See :class:`Screen`."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            self._console.print(_markdown(self._text.rest))

    def _begin(self) -> Live:
        from rich.live import Live

        live = Live(
            console=self._console,
            get_renderable=lambda: _Tail(_markdown(self._text.rest)),
            refresh_per_second=REDRAWS_PER_S,
            transient=True,  # the last block is printed for good when it is complete
            redirect_stdout=False,
            redirect_stderr=sys.stderr.isatty(),
        )
        live.start()
        return live


@contextmanager
def screen() -> Generator[Screen]:
    """The screen for one answer in a conversation."""
    shown = MarkdownScreen() if sys.stdout.isatty() else PlainScreen()
    with unechoed():
        try:
            yield shown
        finally:
            shown.close()


@contextmanager
def unechoed() -> Generator[None]:
    """Keep what is typed meanwhile, the ^C among it, off the terminal: it would tear what is redrawn.

    It is not lost: the next prompt has it.
    """
    if not sys.stdin.isatty():
        yield
        return
    import termios

    keys = sys.stdin.fileno()
    before = termios.tcgetattr(keys)
    silent = before.copy()
    silent[3] &= ~termios.ECHO  # the local modes
    termios.tcsetattr(keys, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(keys, termios.TCSADRAIN, before)


def _markdown(text: str) -> RenderableType:
    from rich.markdown import Markdown

    from shoal.cli.chat.unfolding import PARSER

    shown = Markdown("", hyperlinks=False)  # a link says where it leads: its text may be a lie
    shown.parsed = PARSER.parse(text)
    return shown


class _Tail:
    """The last lines of what would not fit the terminal: what is redrawn must not scroll away."""

    def __init__(self, whole: RenderableType) -> None:
        self._whole = whole

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.segment import Segment

        lines = console.render_lines(self._whole, options, pad=False)
        for line in lines[-max(1, console.height - 1) :]:
            yield from line
            yield Segment.line()
