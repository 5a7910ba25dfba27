"""What other programs need to use this gateway: for the page's *Connect an app* and `shoal launch`. Pure."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

KEY_HINT = "YOUR_SHOAL_KEY"
"""Shown where a key goes: the key itself is never put on a screen."""
NO_KEY = "none"
"""Clients insist on some key; a gateway without keys takes any."""


@dataclass(frozen=True, slots=True)
class GatewayAddress:
    """Where a program finds its model."""

    origin: str
    """The gateway, without a slash at its end."""
    model: str
    key: str = NO_KEY

    @property
    def base(self) -> str:
        """As clients of OpenAI's API take it."""
        return f"{self.origin}/v1"


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A file that a program reads."""

    path: str
    """Below the home of its user."""
    text: str


@dataclass(frozen=True, slots=True)
class Setup:
    """What one program is started with."""

    environ: Mapping[str, str] = field(default_factory=dict[str, str])
    arguments: tuple[str, ...] = ()
    config: ConfigFile | None = None


@dataclass(frozen=True, slots=True)
class App:
    """A program that can use a gateway."""

    name: str
    title: str
    program: str
    install: str
    """The command that installs it."""
    note: str = ""

    def setup(self, place: GatewayAddress) -> Setup:
        """What it needs for this gateway and model."""
        return _SETUPS[self.name](place)

    def lines(self, place: GatewayAddress) -> str:
        """The same as lines of a POSIX shell, or as the file that it reads."""
        setup = self.setup(place)
        if setup.config is not None:
            return f"# ~/{setup.config.path}\n{setup.config.text}".rstrip()
        exports = [f"export {name}={shlex.quote(_plain(value))}" for name, value in setup.environ.items()]
        command = shlex.join([self.program, *map(_plain, setup.arguments)])
        return "\n".join([*exports, command])


def _claude(place: GatewayAddress) -> Setup:
    models = ("MODEL", "DEFAULT_OPUS_MODEL", "DEFAULT_SONNET_MODEL", "DEFAULT_HAIKU_MODEL")
    return Setup(
        {
            "ANTHROPIC_BASE_URL": place.origin,
            "ANTHROPIC_AUTH_TOKEN": place.key,
            "ANTHROPIC_API_KEY": "",  # or a key of Anthropic's would be sent beside
            **{f"ANTHROPIC_{name}": place.model for name in models},
        }
    )


def _opencode(place: GatewayAddress) -> Setup:
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "Shoal",
        "options": {"baseURL": place.base, "apiKey": place.key},
        "models": {place.model: {"name": place.model}},
    }
    config = {"model": f"shoal/{place.model}", "provider": {"shoal": provider}}
    return Setup({"OPENCODE_CONFIG_CONTENT": json.dumps(config)})


def _goose(place: GatewayAddress) -> Setup:
    environ = {
        "GOOSE_PROVIDER": "openai",
        "GOOSE_MODEL": place.model,
        "OPENAI_HOST": place.origin,
        "OPENAI_BASE_PATH": "v1/chat/completions",
        "OPENAI_API_KEY": place.key,
    }
    return Setup(environ, ("session",))


def _aider(place: GatewayAddress) -> Setup:
    environ = {"OPENAI_API_BASE": place.base, "OPENAI_API_KEY": place.key}
    return Setup(environ, ("--model", f"openai/{place.model}"))


def _open_webui(place: GatewayAddress) -> Setup:
    environ = {
        "OPENAI_API_BASE_URL": place.base,
        "OPENAI_API_KEY": place.key,
        "DEFAULT_MODELS": place.model,
        "ENABLE_OLLAMA_API": "false",
    }
    return Setup(environ, ("serve",))


def _continue(place: GatewayAddress) -> Setup:
    model, base, key = (json.dumps(_plain(text)) for text in (place.model, place.base, place.key))
    text = f"""\
name: Shoal
version: 1.0.0
schema: v1
models:
  - name: {model}
    provider: openai
    model: {model}
    apiBase: {base}
    apiKey: {key}
    roles: [chat, edit, apply]
"""
    return Setup(config=ConfigFile(".continue/config.yaml", text))


_SETUPS = {
    "claude": _claude,
    "opencode": _opencode,
    "goose": _goose,
    "aider": _aider,
    "open-webui": _open_webui,
    "continue": _continue,
}
APPS: tuple[App, ...] = (
    App("claude", "Claude Code", "claude", "npm install -g @anthropic-ai/claude-code"),
    App("opencode", "OpenCode", "opencode", "npm install -g opencode-ai"),
    App("goose", "Goose", "goose", "brew install block-goose-cli"),
    App("aider", "Aider", "aider", "python -m pip install aider-install && aider-install"),
    App(
        "open-webui",
        "Open WebUI",
        "open-webui",
        "pip install open-webui",
        "It reads these at its first start, and keeps its own settings then: Admin settings, Connections.",
    ),
    App(
        "continue",
        "Continue",
        "cn",
        "npm install -g @continuedev/cli",
        "The extensions for VS Code and JetBrains read the same file.",
    ),
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def _plain(text: str) -> str:
    """Without control characters, which would act in a terminal despite quotes: names come from peers."""
    return _CONTROL.sub("", text)
