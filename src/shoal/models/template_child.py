"""The process that renders chat templates: JSON lines in, JSON lines out. Run as a file, never imported.

It imports nothing of Shoal: it starts in a tenth of a second, and a template that broke out finds little.
"""

from __future__ import annotations

import datetime
import faulthandler
import json
import sys
from typing import Any, cast

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

MEMORY = 1 << 30
"""Bytes of address space."""
MAX_TEXT = 8 << 20
"""Characters that a template may render to."""
LONGEST_S = 30
"""For one rendering. Who asks has a shorter deadline and kills us; this is for when they were killed."""


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
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a template may not store {name!r}")


def _raise(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """As transformers sets it up."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    names: dict[str, Any] = {
        "raise_exception": _raise,
        "strftime_now": _now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    cast(dict[str, Any], environment.globals).update(names)
    return environment


def _answer(
    environment: jinja2.sandbox.ImmutableSandboxedEnvironment, request: dict[str, Any]
) -> dict[str, str]:
    try:
        text = environment.from_string(request["template"]).render(**request["values"])
    except Exception as error:  # noqa: BLE001 - a template can raise anything; all of it is its answer
        return {"error": f"{type(error).__name__}: {error}"}
    return {"text": text} if len(text) <= MAX_TEXT else {"error": f"it rendered {len(text)} characters"}


def main() -> None:
    try:
        import resource  # noqa: PLC0415 - not on Windows, where the deadline alone must do

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, ValueError):
        pass
    environment = _environment()
    for line in sys.stdin.buffer:
        faulthandler.dump_traceback_later(LONGEST_S, exit=True)
        sys.stdout.buffer.write(json.dumps(_answer(environment, json.loads(line))).encode() + b"\n")
        sys.stdout.buffer.flush()
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()
