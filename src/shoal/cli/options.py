"""The options that commands share, each defined once and named as its field in Settings."""

from __future__ import annotations

import logging
from typing import Annotated, Any

import typer

from shoal import config
from shoal.cli.shell import names
from shoal.config import Settings

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
SwarmOption = Annotated[
    str | None,
    typer.Option(help="Local name of the swarm.", show_default=False, autocompletion=names.swarms),
]
PublicOption = Annotated[
    bool | None,
    typer.Option("--public", help="Use the public swarm: its peers see your address and hidden states."),
]
ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A catalogue name, folder, GGUF file or Hugging Face id.",
        autocompletion=names.models,
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        help="The model; if not given, the default model.", show_default=False, autocompletion=names.models
    ),
]
HostOption = Annotated[str | None, typer.Option(help="Interface to listen on.", show_default=False)]
PortOption = Annotated[int | None, typer.Option(help="TCP port of the libp2p host; 0 picks a free one.")]
DirectPortOption = Annotated[
    int | None, typer.Option(help="TCP port of the direct carrier; 0 picks a free one.")
]
GatewayHostOption = Annotated[
    str | None, typer.Option(help="Interface for the API and the web page.", show_default=False)
]
GatewayPortOption = Annotated[
    int | None,
    typer.Option(help="TCP port for the API and the web page; 0 picks a free one.", show_default=False),
]
MemoryOption = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Memory the node may use, for example 4GiB.", show_default=False),
]
ThreadsOption = Annotated[int | None, typer.Option(help="Compute threads of the node.", show_default=False)]
ParallelOption = Annotated[
    int | None,
    typer.Option(help="Processes that share the blocks, for example one per GPU.", show_default=False),
]
FormatOption = Annotated[
    str | None,
    typer.Option(help="Format of the weights: auto, fp32, bf16, int8 or int4.", show_default=False),
]
NodeFormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="Format of the weights: fp32, bf16, int8 or int4. If not given: the one in which the swarm "
        "already serves the model; else int8 where the C kernels are built; else bf16 or fp32, as stored.",
        show_default=False,
    ),
]
KVOption = Annotated[
    str | None, typer.Option("--kv", help="Format of the KV cache: auto or int8.", show_default=False)
]
WireOption = Annotated[
    str | None,
    typer.Option(
        help="Encoding of the hidden states we send: auto, float32, bfloat16 or int8.", show_default=False
    ),
]
EndWithStdinOption = Annotated[
    bool,
    typer.Option(
        "--end-with-stdin",
        help="Exit when stdin closes, so that a program that starts this one never leaves it behind.",
    ),
]
BootstrapOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MULTIADDR",
        help="Additional address to join through; repeat the option for more.",
        show_default=False,
    ),
]

_for_every_command: dict[str, Any] = {}


def remember(**flags: Any) -> None:
    """Keep what was given before the command's name, for ``settings``."""
    _for_every_command.clear()
    _for_every_command.update(flags)


def settings(**flags: Any) -> Settings:
    """The settings of this command: its flags (``None`` means not given) above all else. Sets up logging.

    Raises:
        UsageError: an option, variable or line of ``config.toml`` with a value it cannot have.
    """
    from shoal.metrics.logs import log_to_stderr
    from shoal.swarm.membership import PUBLIC

    given = {name: value for name, value in flags.items() if value != []}
    if given.get("public") and given.get("swarm") is None:
        given["swarm"] = PUBLIC
    found = config.load({**_for_every_command, **given})
    log_to_stderr(found.log_level, found.log_format)
    return found


def debugging() -> bool:
    """Whether the user asked for everything, tracebacks too."""
    return logging.getLogger("shoal").isEnabledFor(logging.DEBUG)
