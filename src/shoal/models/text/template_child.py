"""The process that renders chat templates: JSON lines in, JSON lines out. Run as a file, never imported.

It imports nothing of Shoal: it starts in a tenth of a second, and a template that broke out finds little.

Each conversation is rendered twice. The first rendering is the prompt. For the second every character that
users, tools and assistants wrote is replaced by a mark, a private-use character that stands for it, so that
what comes out tells, character by character, whose words it is. :class:`Marked` lets the template treat
marked text as if it were the text itself.
"""

from __future__ import annotations

import datetime
import faulthandler
import functools
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import jinja2
import jinja2.compiler
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

MEMORY = 1 << 30
"""Bytes of address space."""
MAX_TEXT = 8 << 20
"""Characters that a template may render to."""
LONGEST_S = 30
"""For one answer. Who asks has a shorter deadline and kills us; this is for when they were killed."""
FIRST_MARK = 0xF0000
"""Marks are of Unicode's planes 15 and 16, where every character is for private use."""
MARKS = re.compile("[\U000f0000-\U0010ffff]+")
ROLE = re.compile("[A-Za-z][A-Za-z0-9_-]{0,63}")
"""A role that is a plain name is the template's to use: Phi-3 makes ``<|user|>`` of it."""
OTHERS, USER, SYSTEM = range(3)
"""Who wrote a character: the last user message and the system's have marks of their own, to be looked for."""


class Marks:
    """Which mark stands for which character, in one conversation."""

    def __init__(self, taken: str) -> None:
        self._taken = set(taken)
        self._next = FIRST_MARK
        self._tables: dict[int, _Table] = {}
        self.writers: dict[str, int] = {}
        """Who wrote what a mark stands for."""
        self.letters: dict[int, int] = {}
        """What each mark stands for, as ``str.translate`` wants it."""
        self.printed = False
        """Whether the template wrote a list of message parts out as Python shows it."""

    def mark(self, text: str, writer: int = OTHERS) -> Marked:
        """``text`` in marks, one for each character."""
        if writer not in self._tables:
            self._tables[writer] = _Table(functools.partial(self._new, writer))
        return Marked(str.translate(text, self._tables[writer]))

    def plain(self, text: str) -> str:
        """``text`` with every mark replaced by what it stands for."""
        return str.translate(text, self.letters)

    def _new(self, writer: int, letter: int) -> int:
        while chr(self._next) in self._taken:
            self._next += 1
        mark, self._next = self._next, self._next + 1
        if mark > sys.maxunicode:
            raise jinja2.exceptions.TemplateError("too many different characters")
        self.letters[mark] = letter
        self.writers[chr(mark)] = writer
        return mark


class _Table(dict[int, int]):
    """Makes a mark for a letter that has none yet."""

    def __init__(self, new: Callable[[int], int]) -> None:
        super().__init__()
        self._new = new

    def __missing__(self, letter: int) -> int:
        self[letter] = mark = self._new(letter)
        return mark


marks = Marks("")
"""Those of the conversation that is being rendered."""


def _plain(value: Any) -> Any:
    """A value as it is without marks, its lists, tuples and dicts included."""
    if isinstance(value, str):
        return marks.plain(value)
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        items = [_plain(item) for item in cast("Iterable[Any]", value)]
        return items if isinstance(value, list) else tuple(items)
    return value


def _noticed(value: Any) -> Any:
    """Marked text that some operation has returned as plain ``str`` is marked text again."""
    return Marked(value) if marks.writers and type(value) is str and MARKS.search(value) else value


class Marked(str):
    """Text with marks in it. Its characters are marks; what it answers is true of the text they stand for.

    Whatever is cut out of it or put together with it keeps its marks. Operations that make new characters
    (a number of the user's, a JSON text) give text that is marked as a whole.
    """

    __slots__ = ()

    def _slices(self, parts: Iterable[str], between: int) -> list[Marked]:
        """The pieces of this text that show as ``parts``, each ``between`` characters behind the last."""
        found: list[Marked] = []
        place = 0
        for part in parts:
            found.append(self[place : place + len(part)])
            place += len(part) + between
        return found

    def _words(self, parts: Iterable[str]) -> list[Marked]:
        """The pieces that show as ``parts``, between which there are blanks."""
        found: list[Marked] = []
        place, whole = 0, _plain(self)
        for part in parts:
            place = whole.find(part, place)
            found.append(self[place : place + len(part)])
            place += len(part)
        return found

    def _cased(self, change: Callable[[str], str]) -> Marked:
        whole = change(_plain(self))
        letters: Iterable[str] = whole if len(whole) == len(self) else (change(_plain(x)) for x in self)
        return Marked(
            "".join(
                marks.mark(new, marks.writers[old]) if old in marks.writers else new
                for old, new in zip(str.__iter__(self), letters, strict=True)
            )
        )

    def __getitem__(self, key: Any) -> Marked:
        return Marked(str.__getitem__(self, key))

    def __iter__(self) -> Iterator[Marked]:
        return (Marked(letter) for letter in str.__iter__(self))

    def __add__(self, other: str) -> Marked:
        return Marked(str.__add__(self, other))

    def __radd__(self, other: str) -> Marked:
        return Marked(str.__add__(other, self))

    def __mul__(self, times: Any) -> Marked:
        return Marked(str.__mul__(self, times))

    def __rmul__(self, times: Any) -> Marked:
        return self * times

    def __rmod__(self, form: str) -> Marked:
        return Marked(str.__mod__(form, self))

    def __str__(self) -> str:
        return self

    def __repr__(self) -> str:
        marks.printed = True
        return marks.mark(repr(_plain(self)))

    def __format__(self, spec: str) -> str:
        return marks.mark(format(_plain(self), _plain(spec))) if spec else self

    def __hash__(self) -> int:
        return hash(_plain(self))

    def __int__(self) -> int:
        return int(_plain(self))

    def __float__(self) -> float:
        return float(_plain(self))

    def split(self, sep: str | None = None, maxsplit: Any = -1) -> list[str]:
        parts = _plain(self).split(_plain(sep), maxsplit)
        return cast("list[str]", self._words(parts) if sep is None else self._slices(parts, len(sep)))

    def rsplit(self, sep: str | None = None, maxsplit: Any = -1) -> list[str]:
        parts = _plain(self).rsplit(_plain(sep), maxsplit)
        return cast("list[str]", self._words(parts) if sep is None else self._slices(parts, len(sep)))

    def splitlines(self, keepends: bool = False) -> list[str]:
        lines = self._slices(_plain(self).splitlines(keepends=True), 0)
        if keepends:
            return cast("list[str]", lines)
        return [line[: len(_plain(line).splitlines()[0])] for line in lines]

    def partition(self, sep: str) -> tuple[str, str, str]:
        one, two, three = self._slices(_plain(self).partition(_plain(sep)), 0)
        return one, two, three

    def rpartition(self, sep: str) -> tuple[str, str, str]:
        one, two, three = self._slices(_plain(self).rpartition(_plain(sep)), 0)
        return one, two, three

    def lstrip(self, chars: str | None = None) -> Marked:
        return self[len(self) - len(_plain(self).lstrip(_plain(chars))) :]

    def rstrip(self, chars: str | None = None) -> Marked:
        return self[: len(_plain(self).rstrip(_plain(chars)))]

    def strip(self, chars: str | None = None) -> Marked:
        return self.lstrip(chars).rstrip(chars)

    def removeprefix(self, prefix: str) -> Marked:
        return self[len(prefix) :] if self.startswith(prefix) else self

    def removesuffix(self, suffix: str) -> Marked:
        return self[: len(self) - len(suffix)] if suffix and self.endswith(suffix) else self

    def replace(self, old: str, new: str, count: Any = -1) -> Marked:
        if not old:
            return marks.mark(_plain(self).replace("", _plain(new), count))
        return Marked(str.join(new, self.split(old, count)))

    def join(self, items: Iterable[str]) -> Marked:
        return Marked(str.join(self, items))


def _asked(name: str) -> Any:
    """A question about the text, whose answer is no text."""

    def method(self: str, *args: Any) -> Any:
        return getattr(_plain(self), name)(*(_plain(value) for value in args))

    return method


def _made(name: str) -> Any:
    """An operation that makes new text: all of it is marked."""

    def method(self: str, *args: Any, **named: Any) -> Any:
        return marks.mark(getattr(_plain(self), name)(*_plain(args), **_plain(named)))

    return method


def _recased(name: str) -> Any:
    def method(self: Marked) -> Marked:
        return self._cased(lambda text: getattr(text, name)())  # pyright: ignore[reportPrivateUsage]

    return method


for _kind, _names in (
    (_asked, "__eq__ __ne__ __lt__ __le__ __gt__ __ge__ __contains__ startswith endswith find rfind index"),
    (_asked, "rindex count encode isalnum isalpha isascii isdecimal isdigit isidentifier islower isnumeric"),
    (_asked, "isprintable isspace istitle isupper"),
    (_made, "__mod__ center ljust rjust zfill expandtabs translate"),
    (_recased, "upper lower title capitalize casefold swapcase"),
):
    for _name in _names.split():
        setattr(Marked, _name, _kind(_name))


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks, for training, what the assistant said; here it only encloses it."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


class _Dict:
    """What a template may know of ``dict``, whose attributes would lead further."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(jinja2.utils.Namespace):
    """Refuses names that begin with an underscore: they lead to Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, rest = args[0], args[1:]
        values = dict(*rest, **kwargs)
        for name in values:
            _public(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: Any, value: Any) -> None:
        _public(name)
        super().__setitem__(name, value)


def _public(name: object) -> None:
    if isinstance(name, str) and _plain(name).startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a template may not store {name!r}")


def _raise(message: str) -> None:
    raise jinja2.exceptions.TemplateError(_plain(message))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    plain = _plain(value)
    text = json.dumps(
        plain, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    writers = _writers(value)
    return marks.mark(text, max(writers)) if writers else text


def _writers(value: Any) -> set[int]:
    """Who wrote something of ``value``; empty where it is all the template's."""
    if isinstance(value, str):
        return {marks.writers[letter] for letter in set(str.__iter__(value)) if letter in marks.writers}
    if isinstance(value, dict):
        value = list(cast("dict[Any, Any]", value).items())
    items = cast("Iterable[Any]", value) if isinstance(value, list | tuple) else ()
    return {writer for item in items for writer in _writers(item)}


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


class _Code(jinja2.compiler.CodeGenerator):
    def visit_Concat(self, node: jinja2.nodes.Concat, frame: jinja2.compiler.Frame) -> None:
        """``a ~ b``, noticing marks."""
        self.write("environment.concat(map(str, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")))")


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """As transformers sets it up, and whatever makes text notices marks in it."""

    code_generator_class = _Code
    intercepted_binops = frozenset("+%")
    concat = staticmethod(lambda parts: _noticed("".join(parts)))  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        self.filters["tojson"] = _tojson
        self.filters = {name: _noticing(found) for name, found in self.filters.items()}
        names: dict[str, Any] = {
            "raise_exception": _raise,
            "strftime_now": _now,
            "dict": _Dict(),
            "namespace": _Namespace,
        }
        cast(dict[str, Any], self.globals).update(names)

    def call(__self, *args: Any, **kwargs: Any) -> Any:
        return _noticed(super().call(*args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        return _noticed(super().call_binop(context, operator, left, right))


def _noticing(found: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(found)
    def filtered(*args: Any, **kwargs: Any) -> Any:
        return _noticed(found(*args, **kwargs))

    return filtered


def _marked(value: Any, writer: int = OTHERS) -> Any:
    """A value with all its text in marks."""
    if isinstance(value, str):
        return marks.mark(value, writer)
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value).items()
        return {marks.mark(key): _marked(item, writer) for key, item in items}
    if isinstance(value, list):
        return [_marked(item, writer) for item in cast("list[Any]", value)]
    return value


def _marked_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    last = max((i for i, message in enumerate(messages) if message.get("role") == "user"), default=-1)
    found: list[dict[str, Any]] = []
    for place, message in enumerate(messages):
        role = message.get("role")
        writer = USER if place == last else SYSTEM if role == "system" else OTHERS
        marked = {key: _marked(value, writer) for key, value in message.items()}
        if isinstance(role, str) and ROLE.fullmatch(role):
            marked["role"] = role
        found.append(marked)
    return found


@functools.lru_cache(maxsize=1)
def _compiled(environment: _Environment, source: str) -> jinja2.Template:
    """The template, kept: compiling takes ten times as long as rendering, and a process has one."""
    return environment.from_string(source)


def _answer(environment: _Environment, request: dict[str, Any]) -> dict[str, Any]:
    """``text`` is the prompt. ``marked`` is what the second rendering came to where that is another, and
    ``spans`` says which of its characters are not the template's own."""
    global marks  # noqa: PLW0603 - one conversation at a time
    own, given, messages = request["own"], request["given"], request["messages"]
    if taken := sorted(own.keys() & given.keys()):
        return {"error": f"{', '.join(taken)} is the model's own to say"}
    marks = Marks(json.dumps([request["template"], own], ensure_ascii=False))
    try:
        template = _compiled(environment, request["template"])
        text = template.render({**own, **given, "messages": messages})
    except Exception as error:  # noqa: BLE001 - a template can raise anything; all of it is its answer
        return {"error": f"{type(error).__name__}: {error}"}
    if len(text) > MAX_TEXT:
        return {"error": f"it rendered {len(text)} characters"}
    try:
        kept = {key: _marked(value) for key, value in given.items()}
        shown = template.render({**own, **kept, "messages": _marked_messages(messages)})
        plain = _plain(shown)
    except Exception as error:  # noqa: BLE001 - as above
        return {"text": text, "unmarked": f"{type(error).__name__}: {error}"}
    writers = {marks.writers[mark] for mark in set(str.__iter__(shown)) & marks.writers.keys()}
    answer = {
        "text": text,
        "spans": [match.span() for match in MARKS.finditer(shown)],
        "user": USER in writers,
        "system": SYSTEM in writers,
        "printed": marks.printed,
    }
    return answer if plain == text else answer | {"marked": plain}


def main() -> None:
    try:
        import resource  # noqa: PLC0415 - not on Windows, where the deadline alone must do

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, ValueError):
        pass
    environment = _Environment()
    for line in sys.stdin.buffer:
        faulthandler.dump_traceback_later(LONGEST_S, exit=True)
        sys.stdout.buffer.write(json.dumps(_answer(environment, json.loads(line))).encode() + b"\n")
        sys.stdout.buffer.flush()
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()
