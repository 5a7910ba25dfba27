"""Pictures in a prompt: where a template shows one, and the tokens that stand for its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shoal.errors import UsageError


@dataclass(frozen=True, slots=True)
class PictureWords:
    """The tokens that show a picture, by their ids."""

    token: int
    """Stands for each of its rows."""
    opens: int | None = None
    """What templates write instead, and what stands before the rows; ``None``: they write ``token``."""
    closes: int | None = None
    """Stands behind them."""
    around: str = ""
    """Text before and behind all of it."""

    def written(self, text_of: Callable[[int], str]) -> str:
        """What a template writes where it shows a picture."""
        return text_of(self.token if self.opens is None else self.opens)

    def whole(self, text_of: Callable[[int], str]) -> str:
        """What that becomes, with one token for all rows."""
        tokens = [token for token in (self.opens, self.token, self.closes) if token is not None]
        return f"{self.around}{''.join(map(text_of, tokens))}{self.around}"


@dataclass(frozen=True, slots=True)
class ShownPictures:
    """How pictures are to be put into a prompt."""

    rows: tuple[int, ...]
    """Tokens of each."""
    token: int
    """The tokenizer's, which shows a picture."""
    row: int
    """Stands for each row: the same, unless it is beyond what the model embeds."""
    written: str
    whole: str
    """As of :class:`PictureWords`."""

    def put(self, text: str, foreign: Sequence[tuple[int, int]]) -> tuple[str, list[tuple[int, int]]]:
        """``text`` with the whole of what shows a picture wherever the template has written its word.

        Args:
            foreign: the parts that are not the template's own words. In them the word is text.

        Returns:
            The text, and where those parts are in it.

        Raises:
            UsageError: the template shows fewer pictures than there are, or more.
        """
        pieces: list[str] = []
        moved: list[tuple[int, int]] = []
        place = length = shown = 0
        for start, end in (*foreign, (len(text), len(text))):
            own = text[place:start]
            shown += own.count(self.written)
            own = own.replace(self.written, self.whole)
            pieces += [own, text[start:end]]
            length += len(own)
            moved.append((length, length + end - start))
            length += end - start
            place = end
        self._check(shown)
        return "".join(pieces), moved[:-1]

    def spread(self, token_ids: Sequence[int]) -> tuple[list[int], tuple[int, ...]]:
        """Token ids with a token for each row of each picture, and where each picture begins.

        Raises:
            UsageError: they show fewer pictures than there are, or more.
        """
        found: list[int] = []
        begins: list[int] = []
        for token in token_ids:
            if token != self.token:
                found.append(token)
                continue
            begins.append(len(found))
            found += [self.row] * (self.rows[len(begins) - 1] if len(begins) <= len(self.rows) else 1)
        self._check(len(begins))
        return found, tuple(begins)

    def _check(self, shown: int) -> None:
        if shown != len(self.rows):
            raise UsageError(
                f"the prompt shows {shown} pictures, and {len(self.rows)} are given",
                check="give a picture for each place that shows one, in user messages; the model's chat "
                "template may have no place for pictures",
            )
