"""Markdown that comes in pieces: which of its blocks will not change any more. Pure."""

from __future__ import annotations

from markdown_it import MarkdownIt

PARSER = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
"""Tags are text like any other: what a model wrote is shown, not hidden."""


class Unfolding:
    """Takes text as it comes; gives back whole Markdown blocks (paragraphs, lists, code), each once.

    Only the last block of a text can be changed by what follows it, and only whole lines say what it is.
    """

    def __init__(self) -> None:
        self.rest = ""
        """The last block, which may still grow."""

    def push(self, text: str) -> str:
        """Take ``text``; returns the blocks that it completed, empty when there are none."""
        self.rest += text
        if "\n" not in text:
            return ""
        lines = self.rest.split("\n")
        tokens = PARSER.parse("\n".join(lines[:-1]))
        begins = [token.map[0] for token in tokens if token.map and token.level == 0]
        if len(begins) < 2:
            return ""
        done = lines[: begins[-1]]
        self.rest = "\n".join(lines[begins[-1] :])
        return "\n".join(done)
