"""The options that commands share, named as their fields in Settings, which say what each one means."""

from __future__ import annotations

import logging
from typing import Annotated, Any

import typer

from shoal import config
from shoal.cli.shell import names
from shoal.config import Settings
from shoal.errors import UsageError
from shoal.types import PROTECTION_LEVELS, ProtectionLevel, protection_level


def flag(name: str, *spellings: str, whole: bool = False, **more: Any) -> Any:
    """The flag of an option of ``Settings``, with the first sentence of what it means there, or all of it."""
    about = config.ABOUT[name]
    help = about if whole else f"{about.partition('. ')[0].removesuffix('.')}."
    return typer.Option(*spellings, help=help, show_default=False, **more)


JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
SwarmOption = Annotated[str | None, flag("swarm", autocompletion=names.swarms)]
PublicOption = Annotated[bool | None, flag("public", "--public")]
ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A catalogue name, folder, GGUF file or Hugging Face id; to serve, an .onnx file too.",
        autocompletion=names.models,
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        help="The model; if not given, the default model.", show_default=False, autocompletion=names.models
    ),
]
HostOption = Annotated[str | None, flag("host")]
PortOption = Annotated[int | None, flag("port")]
DirectPortOption = Annotated[int | None, flag("direct_port")]
PublicAddressOption = Annotated[
    list[str] | None, flag("public_address", "--public-address", metavar="HOST[:PORT]")
]
RelayOption = Annotated[str | None, flag("relay", metavar="on|off")]
PortMapOption = Annotated[str | None, flag("port_map", metavar="on|off")]
IrohOption = Annotated[str | None, flag("iroh", metavar="on|off")]
IrohRelayOption = Annotated[list[str] | None, flag("iroh_relay", "--iroh-relay", metavar="URL")]
GatewayHostOption = Annotated[str | None, flag("gateway_host")]
GatewayPortOption = Annotated[int | None, flag("gateway_port")]
DatabaseOption = Annotated[str | None, flag("database", metavar="URL")]
OllamaPortOption = Annotated[int | None, flag("ollama_port")]
MemoryOption = Annotated[str | None, flag("memory", metavar="SIZE")]
DeviceOption = Annotated[str | None, flag("device")]
KernelsOption = Annotated[str | None, flag("kernels")]
ThreadsOption = Annotated[int | None, flag("threads")]
YieldOption = Annotated[
    str | None, flag("yield_to_owner", "--yield", "--yield-to-owner", metavar="off|share|pause")
]
FastOption = Annotated[bool | None, flag("fast", "--fast", whole=True)]
ParallelOption = Annotated[int | None, flag("parallel")]
FormatOption = Annotated[str | None, flag("format")]
NodeFormatOption = Annotated[str | None, flag("format", "--format", whole=True)]
KVOption = Annotated[str | None, flag("kv", "--kv")]
WireOption = Annotated[str | None, flag("wire")]
OnlyOption = Annotated[list[str] | None, flag("only", metavar="PEER")]
TrainOption = Annotated[str | None, flag("train", metavar="on|off")]
AdapterOption = Annotated[list[str] | None, flag("adapter", "--adapter", metavar="[NAME=]PATH|NAME")]
OperatorOption = Annotated[str | None, flag("operator", metavar="FILE")]
SoftPromptOption = Annotated[list[str] | None, flag("soft_prompt", "--soft-prompt", metavar="[NAME=]PATH")]
AttestOption = Annotated[bool | None, flag("attest", "--attest")]
AttestedOnlyOption = Annotated[bool | None, flag("attested_only", "--attested-only")]
PaymentOption = Annotated[str | None, flag("payment", metavar="FILE")]
MeasurementsOption = Annotated[str | None, flag("measurements", metavar="FILE")]
PrivateEndsOption = Annotated[str | None, flag("private_ends", metavar="FIRST:LAST")]
CreditsOption = Annotated[str | None, flag("credits", metavar="on|off")]
PriceOption = Annotated[str | None, flag("price", metavar="AMOUNT")]
MaxPriceOption = Annotated[str | None, flag("max_price", metavar="AMOUNT")]
PayBudgetOption = Annotated[str | None, flag("pay_budget", metavar="AMOUNT")]
PayPasswordOption = Annotated[str | None, flag("pay_password_file", metavar="FILE")]
RedeemAtOption = Annotated[int | None, flag("redeem_at", metavar="TIMES")]
ObjectiveOption = Annotated[str | None, flag("objective", metavar="latency|throughput|cost")]
SpeculateOption = Annotated[str | None, flag("speculate", metavar="auto|off")]
ProtectOption = Annotated[str | None, flag("protect", metavar="|".join(("auto", *PROTECTION_LEVELS)))]
AuditBudgetOption = Annotated[float | None, flag("audit_budget", metavar="SHARE")]
CanariesOption = Annotated[float | None, flag("canaries", metavar="SHARE")]
DraftOption = Annotated[str | None, flag("draft", metavar="MODEL", autocompletion=names.models)]
BootstrapOption = Annotated[list[str] | None, flag("bootstrap", metavar="MULTIADDR")]
EndWithStdinOption = Annotated[
    bool,
    typer.Option(
        "--end-with-stdin",
        help="Exit when stdin closes, so that a program that starts this one never leaves it behind.",
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


def asked_protection(name: str | None) -> ProtectionLevel | None:
    """A level of protection by its name; ``None`` where none is named.

    Raises:
        UsageError: there is none by that name.
    """
    level = protection_level(name)
    if name is not None and level is None:
        levels = ", ".join(PROTECTION_LEVELS)
        raise UsageError(f"there is no protection {name!r}", check=f"name one of: {levels}")
    return level


def debugging() -> bool:
    """Whether the user asked for everything, tracebacks too."""
    return logging.getLogger("shoal").isEnabledFor(logging.DEBUG)
