"""What the gateway on the other end of a URL says of itself."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import urlsplit

from shoal.config import Settings
from shoal.errors import NotRunning, RemoteProtocolError, UsageError

WITHIN_S = 5.0
MOST_BYTES = 1 << 20


def url_of(settings: Settings, given: str | None) -> str:
    """Where the gateway is, without a slash at its end: as given, or as this machine's settings say.

    Raises:
        UsageError: what was given is no http address.
    """
    if given is not None:
        if not _is_url(given):
            raise UsageError(f"{given!r} is no address", check="write it as http://127.0.0.1:4480")
        return given.rstrip("/").removesuffix("/v1")
    host = settings.gateway_host
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.gateway_port}"


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:  # brackets that hold no address, or a port that can be none
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0


def models_at(url: str, key: str | None) -> list[str]:
    """The models that the gateway can answer with.

    Raises:
        NotRunning: nobody answers there.
        UsageError: the gateway wants a key, or another one.
        RemoteProtocolError: whoever answers there is no gateway.
    """
    request = urllib.request.Request(f"{url}/v1/models")
    if key is not None:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=WITHIN_S) as answer:
            said: Any = json.loads(answer.read(MOST_BYTES))
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.UNAUTHORIZED:
            raise UsageError(
                f"the gateway at {url} wants an API key" if key is None else "the gateway refuses this key",
                check="give the key with --key",
                next_command="shoal key create NAME",
            ) from error
        raise RemoteProtocolError(f"{url} answers {error.code}: it is no gateway of Shoal") from error
    except (OSError, ValueError) as error:
        raise NotRunning(
            f"no gateway answers at {url}",
            check="start one, or name another with --url",
            next_command="shoal up",
        ) from error
    try:
        return [str(card["id"]) for card in cast("list[dict[str, Any]]", said["data"])]
    except (TypeError, KeyError) as error:
        raise RemoteProtocolError(f"{url} lists no models: it is no gateway of Shoal") from error


def choose_model(models: list[str], wanted: str | None, default: str) -> str:
    """The model to use: the one that is wanted, the default one, or the first.

    Raises:
        UsageError: there is none, or not the one that is wanted.
    """
    if wanted is not None and wanted not in models:
        listed = ", ".join(models) or "none now"
        raise UsageError(f"the gateway has no model {wanted!r}", check=f"choose one of: {listed}")
    if not models:
        raise UsageError(
            "the gateway has no model now",
            check="wait until the swarm serves one",
            next_command="shoal status",
        )
    return wanted or (default if default in models else models[0])
