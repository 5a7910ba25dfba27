"""What an option's value may be written as: in a flag, a variable or ``config.toml``. Pure functions."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation, localcontext
from fractions import Fraction
from typing import Any, cast, get_args
from urllib.parse import unquote, urlsplit

from shoal.errors import UsageError
from shoal.types import PROTECTION_LEVELS, Codec, Format, Kernels, PrivateEnds, YieldMode

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(B|KB|MB|GB|TB|KiB|MiB|GiB|TiB)?\s*$", re.IGNORECASE)
_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12} | {
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}


def parse_size(text: str) -> int:
    """Bytes of ``"4GiB"``, ``"500 MB"`` or ``"1048576"``.

    Raises:
        UsageError: the text is not a size.
    """
    match = _SIZE.match(text)
    if not match:
        raise UsageError(f"{text!r} is not a size", check="write a number and a unit, for example 4GiB")
    return round(Fraction(match[1]) * _UNITS[(match[2] or "B").lower()])


COIN_UNITS = 10**18
"""Smallest units, wei, of a chain's coin."""
LONGEST_AMOUNT = 64
MAX_PRICE = (1 << 63) - 1
"""In the smallest unit: what an announcement can hold."""


def read_amount(text: str) -> Decimal:
    """An amount as people write it; 0 where the text is none, or is longer than one can be."""
    try:
        value = Decimal(text) if len(text) <= LONGEST_AMOUNT else Decimal(0)
    except InvalidOperation:
        value = Decimal(0)
    return value if value.is_finite() else Decimal(0)


def parse_coins(amount: str) -> int:
    """An amount of a chain's coin in its smallest unit, to the last digit.

    Raises:
        UsageError: it is none above 0.
    """
    value = read_amount(amount)
    # Compared before it is multiplied: comparing is exact, whatever the exponent.
    if Decimal(1) / COIN_UNITS <= value < 1 << 128:
        with localcontext(prec=2 * LONGEST_AMOUNT):
            units = value * COIN_UNITS
            if units == int(units) and units < 1 << 128:
                return int(units)
    raise UsageError(f"{amount[:64]!r} is no amount", check="write a number above 0, for example 0.05")


def show_coins(units: int) -> str:
    """An amount as :func:`parse_coins` reads it."""
    with localcontext(prec=2 * LONGEST_AMOUNT):
        return f"{Decimal(units) / COIN_UNITS:f}"


def price_of(text: str) -> int:
    """An option's price, in the smallest unit; 0 where it is empty. Raises as :func:`parse_coins`."""
    return parse_coins(text) if text else 0


PUBLIC_LIMIT = 2
"""Public addresses of one machine that are on no interface of it: one of each IP version."""


def parse_public_address(text: str) -> tuple[str, int]:
    """Host and port of ``198.51.7.9``, ``198.51.7.9:4002`` or ``[2a10::9]:4002``; port 0 where none is given.

    Raises:
        UsageError: it is no public address. Names are none: nobody dials a name that a peer announced.
    """
    match = _PLACE.fullmatch(text)
    host, port = (match[1] or match[2], int(match[3])) if match else (text, 0)
    if not _is_public(host) or (match and not 0 < port < 65536):
        raise UsageError(
            f"public_address is {text[:64]!r}",
            check="write the public IP address, and behind a colon the port that leads to the direct port "
            "if that is another one: 203.0.114.9, 203.0.114.9:4002 or [2a10::9]:4002",
        )
    return host, port


IROH_RELAYS_LIMIT = 4
"""Relays of iroh that one machine uses."""


def parse_iroh_relay(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of ``https://relay.example.org`` or ``http://192.0.2.1:3340``.

    Raises:
        UsageError: it is no address of a relay.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:  # a port that is none, or brackets that do not close
        parts, host, port = urlsplit(""), "", None
    plain = parts.scheme in ("https", "http") and parts.path in ("", "/") and "@" not in parts.netloc
    if not plain or parts.query or parts.fragment or port == 0 or not _RELAY_HOST.fullmatch(host):
        raise UsageError(
            f"iroh_relay is {url[:64]!r}",
            check="write the relay's URL, without a path: https://relay.example.org or http://192.0.2.1:3340",
        )
    return parts.scheme, host, port or (443 if parts.scheme == "https" else 80)


def _is_public(host: str) -> bool:
    try:
        return "%" not in host and ipaddress.ip_address(host).is_global
    except ValueError:
        return False


def option_value(value: Any, kind: Any, *, size: bool = False) -> Any:
    """The value in the option's type. Text is read; a number or a list must be of the right type already.

    Args:
        kind: ``bool``, ``int``, ``float``, ``str`` or ``tuple[str, ...]``.
        size: whether text may be a size with a unit.

    Raises:
        ValueError: it is not of that type; says what is needed.
        UsageError: a text that is no size.
    """
    try:
        if size and isinstance(value, str):
            return parse_size(value)
        if kind == tuple[str, ...]:
            return _to_texts(value)
        if isinstance(value, str):
            return _to_bool(value) if kind is bool else kind(value.strip())
        # TOML's 1.0 is no port and its true no number of threads, though Python would take them.
        if type(value) is kind or (kind is float and type(value) is int):
            return kind(value)
        raise TypeError
    except (TypeError, ValueError) as error:
        raise ValueError(_spell(kind)) from error


def _to_texts(value: Any) -> tuple[str, ...]:
    items = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)):
        raise TypeError
    texts = cast("list[Any] | tuple[Any, ...]", items)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError
    return tuple(texts)


def _to_bool(value: str) -> bool:
    text = value.strip().lower()
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("0", "false", "no", "off", ""):
        return False
    raise ValueError(value)


def _spell(kind: Any) -> str:
    names: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return names.get(kind, "a list of texts")


def server_of(url: str) -> str:
    """Where the server of a database is, as people may be told: its host and port."""
    return _address(url)[1].partition("/")[0] or "this machine"


def without_password(url: str) -> str:
    """The address of a database as it may be shown and logged."""
    user, place, query = _address(url)
    name, colon, _ = user.partition(":")
    shown = url.partition("://")[0] + "://" + name + (":***" if colon else "") + ("@" if user else "") + place
    told = [
        f"{key}=***" if _is_secret(key) else f"{key}={value}"
        for key, _, value in (one.partition("=") for one in query.split("&") if one)
    ]
    return f"{shown}?{'&'.join(told)}" if told else shown


def _is_secret(parameter: str) -> bool:
    name = unquote(parameter).lower()  # libpq decodes names, too
    return "password" in name or "secret" in name


def database_parameters(url: str) -> dict[str, str]:
    """What the address of a database says, by the names of libpq's parameters; empty without psycopg.

    Raises:
        UsageError: it is no address of a server; without saying what it is, which may be a password.
    """
    scheme = url.partition("://")[0]
    user, place, _ = _address(url)
    bad = "://" not in url or scheme not in ("postgresql", "postgres") or re.search("[@/?#]", user)
    if bad or not _HOSTS.fullmatch(place.partition("/")[0]) or _BROKEN_PERCENT.search(url):
        raise _no_database()
    try:
        from psycopg import ProgrammingError  # noqa: PLC0415 - an extra, and slow to import
        from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415
    except ImportError:  # who opens the database says so
        return {}
    try:
        return {name: str(value) for name, value in conninfo_to_dict(url).items()}
    except ProgrammingError:
        raise _no_database() from None  # libpq quotes what it cannot read


def _no_database() -> UsageError:
    return UsageError(
        "database is not the address of a PostgreSQL server",
        check="write postgresql://USER:PASSWORD@HOST:PORT/DATABASE, in the password with %40 for @, %2F "
        "for /, %3F for ?, %23 for # and %25 for %; behind ? only parameters of libpq",
    )


def _address(url: str) -> tuple[str, str, str]:
    """User and password, host and name, and parameters of a database's address."""
    user, _, rest = url.partition("://")[2].rpartition("@")
    place, _, query = rest.partition("?")
    return user, place, query


_HOST = r"(?:\[[^][@/]+\]|[^][:,]*)(?::\d*)?"
_HOSTS = re.compile(f"{_HOST}(?:,{_HOST})*", re.ASCII)
"""Of an address: what is behind a colon that is no port may be a password."""
_BROKEN_PERCENT = re.compile("%(?![0-9A-Fa-f]{2})")
_PLACE = re.compile(r"(?:\[([0-9A-Fa-f:]+)\]|([0-9.]+)):([0-9]{1,5})")
_RELAY_HOST = re.compile(r"[0-9A-Za-z._-]{1,128}|[0-9A-Fa-f:.]{2,45}")
_DEVICE = re.compile(r"auto|cpu|mps|(cuda|xpu)(:\d{1,2})?")
BOUNDS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("port", "direct_port", "metrics_port", "gateway_port", "ollama_port"), (0, 65535)),
    "memory": (0, 1 << 60),
    "share_rate": (0, 1 << 50),
    "threads": (0, 4096),
    "parallel": (1, 64),
    "max_sessions": (1, 1 << 20),
    "kv_tokens": (1, 1 << 40),
    "train_tokens": (1, 1 << 14),
    "images": (0, 256),
    "image_pixels": (1, 1 << 28),
    "prefill_chunk": (0, 1 << 22),
    "audit_budget": (0, 16),
    "canaries": (0, 1),
    "redeem_at": (0, 1 << 20),
    "store_days": (0, 3650),
    "announce_s": (0.05, 120),
    "expiry_s": (0.1, 300),
    "step_timeout_s": (0.01, 86400),
    "resume_s": (0.1, 86400),
    "open_timeout_s": (0.01, 86400),
}
"""The least and the most that an option may be."""
WORDS: dict[str, tuple[str, ...]] = {
    "format": ("auto", *get_args(Format)),
    "kv": ("auto", "int8"),
    "wire": ("auto", *get_args(Codec)),
    "kernels": get_args(Kernels),
    "yield_to_owner": get_args(YieldMode),
    "speculate": ("auto", "off"),
    "protect": ("auto", *PROTECTION_LEVELS),
    "share": ("auto", "on", "off"),
    "objective": ("latency", "throughput", "cost"),
    "log_level": ("debug", "info", "warning", "error"),
    "log_format": ("text", "json"),
}
"""The words of which an option is one."""


def check_values(values: Mapping[str, Any]) -> None:
    """See whether every option has a value that it can have.

    Args:
        values: of every option, by its name, in its type.

    Raises:
        UsageError: one has not; says which and what it can have.
    """
    for name, (least, most) in BOUNDS.items():
        value = values[name]
        if not (math.isfinite(value) and least <= value <= most):
            raise UsageError(f"{name} is {value}", check=f"set it between {least} and {most}")
    if not _DEVICE.fullmatch(values["device"]):
        raise UsageError(
            f"device is {values['device']!r}", check="set it to auto, cpu, cuda, cuda:0, mps, xpu or xpu:0"
        )
    try:
        PrivateEnds.parse(values["private_ends"])
    except ValueError as error:
        raise UsageError(
            f"private_ends is {values['private_ends']!r}",
            check="set it to two numbers of blocks, the first and the last, for example 2:2",
        ) from error
    for name in ("price", "max_price"):
        if price_of(values[name]) > MAX_PRICE:
            raise UsageError(f"{name} is {values[name]}", check=f"set it to {show_coins(MAX_PRICE)} or less")
    price_of(values["pay_budget"])
    _check_ways(values["public_address"], values["iroh_relay"])
    if values["database"]:
        database_parameters(values["database"])
    for name, words in WORDS.items():
        if values[name] not in words:
            raise UsageError(f"{name} is {values[name]!r}", check=f"set it to one of: {', '.join(words)}")
    if values["expiry_s"] <= values["announce_s"]:
        raise UsageError(
            f"expiry_s ({values['expiry_s']}) is not above announce_s ({values['announce_s']})",
            check="set expiry_s to about three times announce_s, or peers expire between announcements",
        )


def _check_ways(public: tuple[str, ...], relays: tuple[str, ...]) -> None:
    for text in public:
        parse_public_address(text)
    if len(public) > PUBLIC_LIMIT:
        raise UsageError(
            f"public_address has {len(public)} addresses",
            check=f"give {PUBLIC_LIMIT} at most, one of each IP version",
        )
    for text in relays:
        parse_iroh_relay(text)
    if len(relays) > IROH_RELAYS_LIMIT:
        raise UsageError(f"iroh_relay has {len(relays)} relays", check=f"give {IROH_RELAYS_LIMIT} at most")
