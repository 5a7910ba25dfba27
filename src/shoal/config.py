"""Frozen settings, and the only reader of the environment.

A value comes from the first of: a flag, ``SHOAL_<NAME>`` in the environment, ``config.toml``, the default.
``shoal doctor`` prints where ``config.toml`` is looked for.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

from shoal.config_file import default_paths, read_config_file
from shoal.errors import UsageError
from shoal.option_values import WORDS, check_values, option_value
from shoal.types import (
    Codec,
    Format,
    Kernels,
    Paths,
    PrivateEnds,
    ProtectionLevel,
    YieldMode,
)

DEFAULT_MODEL = "SmolLM2-135M-Instruct"
DEFAULT_SWARM = "home"


def _about(text: str) -> dict[str, str]:
    """What an option means: its first sentence is the help of its flag, ``shoal config`` prints all of it."""
    return {"about": text}


@dataclass(frozen=True, slots=True)
class Settings:
    """Every option, with its unit and default. The field's name is its name everywhere."""

    swarm: str = field(
        default=DEFAULT_SWARM, metadata=_about("Local name of the swarm; public is the open one.")
    )
    public: bool = field(
        default=False, metadata=_about("Use the public swarm: its peers see your address and hidden states.")
    )
    model: str = field(
        default=DEFAULT_MODEL, metadata=_about("The model to serve, or to chat with, when none is named.")
    )
    host: str = field(
        default="*",
        metadata=_about("Interface to listen on, * for all in IPv4 and IPv6; 127.0.0.1: this machine alone."),
    )
    port: int = field(default=0, metadata=_about("TCP port of the libp2p host; 0 picks a free one."))
    direct_port: int = field(
        default=0, metadata=_about("TCP port of the direct carrier; 0 picks a free one.")
    )
    direct: bool = field(
        default=True,
        metadata=_about("Offer and use the direct carrier. Without it every channel is a libp2p stream."),
    )
    public_address: tuple[str, ...] = field(
        default=(),
        metadata=_about(
            "Public address that leads here and is on no interface: HOST, or HOST:PORT for the direct port "
            "alone. With HOST both ports keep their numbers there. The node is then public, and a relay."
        ),
    )
    relay: bool = field(
        default=True,
        metadata=_about("Pass on traffic of peers behind routers: on or off. Only public nodes are asked."),
    )
    port_map: bool = field(
        default=True, metadata=_about("Ask the router for a public port, by NAT-PMP, UPnP or PCP: on or off.")
    )
    iroh: bool = field(
        default=False,
        metadata=_about(
            "Reach peers over iroh too, where no other way leads: on or off. Needs the extra iroh, here and "
            "there. Its UDP port has the number of direct-port. iroh asks the router for it by itself."
        ),
    )
    iroh_relay: tuple[str, ...] = field(
        default=(),
        metadata=_about(
            "URL of a relay of iroh to use, and no other; repeat the flag to give several. Peers meet at a "
            "relay that both have named. With none, iroh reaches peers at their UDP ports alone."
        ),
    )
    mdns: bool = field(default=True, metadata=_about("Find peers on the local network."))
    bootstrap: tuple[str, ...] = field(
        default=(),
        metadata=_about("Multiaddrs to join through, besides the invite's; repeat the flag to give several."),
    )
    format: Format | Literal["auto"] = field(
        default="auto",
        metadata=_about(
            "Format of the weights: auto, fp32, published, bf16, int8, w8a8 or int4. All nodes of a route "
            "have the same. With auto a node takes the format in which the swarm already serves the model; "
            "if nobody serves it yet, and the C kernels are built, published for a quantised model, int8 for "
            "others; else bf16 for a checkpoint in 16 bits, else fp32. With auto a client takes the format "
            "that most peers serve. fp32 is for exact comparison."
        ),
    )
    kv: Literal["auto", "int8"] = field(
        default="auto",
        metadata=_about("Format of the KV cache: auto, as the weights' format has it, or int8."),
    )
    wire: Codec | Literal["auto"] = field(
        default="auto",
        metadata=_about(
            "Encoding of hidden states on their way: auto, float32, bfloat16, int8 or int6. A session has "
            "one. Its client chooses it; a node can ask for one. With auto it depends on the weights' format "
            "and the links."
        ),
    )
    memory: int = field(
        default=0,
        metadata=_about(
            "Memory the node may use for weights and KV, for example 4GiB; 0 uses half of what is free."
        ),
    )
    device: str = field(
        default="auto",
        metadata=_about(
            "Where weights lie and forwards run: auto, cpu, cuda, cuda:1, mps or xpu. With auto it is the "
            "accelerator that has the most memory free, if it has 1 GiB at least, else the CPU. What memory "
            "and KV say is then of that device."
        ),
    )
    kernels: Kernels = field(
        default="auto",
        metadata=_about(
            "What computes models of Llama's shape on the CPU: auto or torch. With auto it is the C kernels "
            "where they are built; torch runs them as on an accelerator. Accelerators always have torch."
        ),
    )
    threads: int = field(default=0, metadata=_about("Compute threads; 0 uses one per physical core."))
    fast: bool = field(
        default=False,
        metadata=_about(
            "Of graphs: each node optimises its part by itself. That is faster, and the bits then depend on "
            "how the graph is cut. Nodes and clients with it and without it never share a request."
        ),
    )
    parallel: int = field(
        default=1,
        metadata=_about(
            "Processes that share the computation of the node's blocks, for example one per GPU or NUMA node."
        ),
    )
    yield_to_owner: YieldMode = field(
        default="off",
        metadata=_about(
            "What the node does while its machine is used for something else: off, share or pause. Something "
            "else is a quarter of the CPU or of the node's GPU taken by other programs, or a battery in use. "
            "With share the node computes in a quarter of the time. With pause it takes no new sessions, "
            "those that others can take go on there, and the rest go on as with share. 20 seconds after the "
            "last sign of use it is as before."
        ),
    )
    max_sessions: int = field(
        default=64, metadata=_about("Sessions that a node holds at once; it refuses one more as busy.")
    )
    kv_tokens: int = field(
        default=65536,
        metadata=_about("Tokens of KV that a node holds over all sessions, if its memory allows."),
    )
    prefill_chunk: int = field(
        default=0,
        metadata=_about(
            "Longest piece of a prompt sent as one step, in tokens; 0 chooses it so that every hop is busy."
        ),
    )
    speculate: Literal["auto", "off"] = field(
        default="auto",
        metadata=_about("Guess tokens ahead, where that is faster: auto or off. The tokens stay the same."),
    )
    draft: str = field(
        default="",
        metadata=_about(
            "Small model that guesses tokens ahead on the client's machine. It must have the tokenizer of "
            "the model that answers. It is loaded when it would make an answer faster, and freed when unused "
            "for five minutes."
        ),
    )
    objective: Literal["latency", "throughput", "cost"] = field(
        default="latency",
        metadata=_about(
            "What routes are optimised for: latency, the speed of one session; throughput, that of many "
            "sessions together; cost, the least money, then the fewest bytes between machines."
        ),
    )
    credits: bool = field(
        default=False,
        metadata=_about(
            "Serve those first who serve others: on or off. No chain is needed. Hops then learn "
            "which node a client of the same machine belongs to."
        ),
    )
    price: str = field(
        default="",
        metadata=_about(
            "What the node asks for a million tokens of one block, in its test chain's coin, for example "
            "0.002; empty asks nothing. It needs a wallet, a chain.toml and the extra ledger."
        ),
    )
    max_price: str = field(
        default="",
        metadata=_about(
            "The most that a hop may ask for a million tokens of one block, in the test chain's coin; with "
            "none, routes go over nodes that ask nothing."
        ),
    )
    pay_budget: str = field(
        default="",
        metadata=_about(
            "What a client pays into a payment channel to each node that it pays, and no more, in the test "
            "chain's coin. It needs pay-password-file, as it pays without asking."
        ),
    )
    pay_password_file: str = field(
        default="",
        metadata=_about("File with the wallet's password, for clients that pay and nodes that redeem."),
    )
    redeem_at: int = field(
        default=50,
        metadata=_about(
            "A node that is paid, and has pay-password-file, redeems a voucher by itself once it is worth so "
            "many times the gas of that. 0 leaves it to shoal wallet withdraw."
        ),
    )
    pin: tuple[str, ...] = field(
        default=(), metadata=_about("Ids of peers that routes must use wherever they serve.")
    )
    only: tuple[str, ...] = field(
        default=(),
        metadata=_about(
            "Id of a peer that routes may use, and no other; repeat the flag to give several. Where none of "
            "them serves a block there is no route: unlike with pin, others are never asked for it."
        ),
    )
    attest: bool = field(
        default=False,
        metadata=_about(
            "Show whoever asks what this machine is, by quotes of its hardware: TDX, SGX, SEV-SNP or Nitro."
        ),
    )
    operator: str = field(
        default="",
        metadata=_about(
            "File in which the operator of this node has signed that it is theirs, as shoal operator sign "
            "makes it. The node announces that, and counts as one with the operator's other nodes."
        ),
    )
    pccs: str = field(
        default="https://api.trustedservices.intel.com",
        metadata=_about(
            "Where a node with attest gets what Intel says of its machine. Intel's own service, or a cache."
        ),
    )
    attested_only: bool = field(
        default=False,
        metadata=_about(
            "Use peers alone that show to run on confidential hardware, with software that the list of "
            "measurements has. Nobody else gets hidden states."
        ),
    )
    measurements: str = field(
        default="",
        metadata=_about(
            "File with the software that attested-only allows. By default measurements.toml beside "
            "config.toml. docs/attestation.md says how it is written."
        ),
    )
    private_ends: str = field(
        default="0:0",
        metadata=_about(
            "How many of the first and the last blocks the client runs itself, for example 2:2. Other peers "
            "then get only what comes out of the first ones. That raises the cost of looking and is no "
            "encryption: shoal privacy shows how much can be read."
        ),
    )
    protect: Literal["auto"] | ProtectionLevel = field(
        default="auto",
        metadata=_about(
            "How answers are protected from nodes that compute something else: auto, fast, audited, proved, "
            "consensus or attested. With fast nobody checks anything. With audited all nodes of a route sign "
            "each answer, and by chance one of them is computed again. With proved one of them proves a "
            "block of it instead. With consensus others compute all of it too, and what all have signed is "
            "compared. With attested it is as attested-only says. With auto it is audited in the public "
            "swarm, else fast."
        ),
    )
    audit_budget: float = field(
        default=0.05,
        metadata=_about("Share of the compute of audited answers that audits may take, for example 0.05."),
    )
    canaries: float = field(
        default=0.0,
        metadata=_about(
            "Share of the audit budget that canaries may take, for example 0.5; 0 sends none. A canary is a "
            "request of nobody that looks like one of this client's, under an identity that is used once, of "
            "which every hop is computed again: so hops are found that are honest to known auditors alone."
        ),
    )
    adapter: tuple[str, ...] = field(
        default=(),
        metadata=_about(
            "LoRA adapter that sessions may have: PATH or NAME=PATH of its folder, as PEFT writes it, or "
            "name or digest of one that peers serve. Repeat it to give several. Clients ask for MODEL:NAME."
        ),
    )
    soft_prompt: tuple[str, ...] = field(
        default=(),
        metadata=_about(
            "Folder of a soft prompt, as PEFT's prompt tuning writes it, that this machine puts before "
            "prompts: PATH or NAME=PATH. Repeat the flag to give several. Ask for MODEL:NAME."
        ),
    )
    train: bool = field(
        default=False,
        metadata=_about(
            "Let clients tune adapters through this node's blocks: on or off. Its weights must be in fp32."
        ),
    )
    train_tokens: int = field(
        default=2048,
        metadata=_about("Tokens of the longest sequence that a node trains; its activations are in memory."),
    )
    images: int = field(
        default=8,
        metadata=_about("Images of one request, for models that look at them; 0 takes none."),
    )
    image_pixels: int = field(
        default=25_000_000,
        metadata=_about("Pixels that an image may have; larger ones are refused before they are unpacked."),
    )
    share: Literal["auto", "on", "off"] = field(
        default="auto", metadata=_about("Give weights to peers: auto (in private swarms), on or off.")
    )
    share_rate: int = field(
        default=0, metadata=_about("Most bytes a second of weights given to peers; 0 sets no bound.")
    )
    announce_s: float = field(default=10.0, metadata=_about("Seconds between two announcements."))
    expiry_s: float = field(
        default=30.0, metadata=_about("Seconds after which a silent peer counts as gone.")
    )
    step_timeout_s: float = field(
        default=60.0, metadata=_about("Seconds to wait for one step before the route counts as lost.")
    )
    resume_s: float = field(
        default=8.5,
        metadata=_about(
            "Seconds for which a session that lost a hop, or a new one that reaches none, tries again."
        ),
    )
    open_timeout_s: float = field(default=10.0, metadata=_about("Seconds for every hop to open a session."))
    log_level: str = field(
        default="warning", metadata=_about("Lowest severity logged on stderr: debug, info, warning or error.")
    )
    log_format: Literal["text", "json"] = field(
        default="text", metadata=_about("Format of log lines: text or json.")
    )
    metrics_host: str = field(
        default="127.0.0.1",
        metadata=_about("Interface at which a node serves metrics for Prometheus; none turns them off."),
    )
    metrics_port: int = field(
        default=0, metadata=_about("TCP port for metrics; 0 picks a free one, which shoal status finds.")
    )
    otlp_endpoint: str = field(
        default="", metadata=_about("Collector for traces, as http://127.0.0.1:4318; needs the extra otel.")
    )
    gateway_host: str = field(
        default="127.0.0.1",
        metadata=_about("Interface for the API and the web page. Other machines need an API key."),
    )
    gateway_port: int = field(
        default=4480, metadata=_about("TCP port for the API and the web page; 0 picks a free one.")
    )
    ollama_port: int = field(
        default=0,
        metadata=_about(
            "TCP port at which the gateway answers too, for programs that look for Ollama at its own: 11434; "
            "0 is none."
        ),
    )
    gateway_origins: tuple[str, ...] = field(
        default=(),
        metadata=_about(
            "Origins of web pages that may call the API, for example https://chat.example.org. Their host "
            "names are accepted as names of the gateway, too."
        ),
    )
    database: str = field(
        default="",
        repr=False,  # it may hold a password
        metadata=_about(
            "PostgreSQL database that several gateways share, for example "
            "postgresql://shoal:secret@db.example.org/shoal. Keys, limits, use, and what callers have stored "
            "are then the same at all of them. If empty, each machine has a file of its own."
        ),
    )
    payment: str = field(
        default="", metadata=_about("File that says what answers cost without an API key: docs/ledger.md.")
    )
    store_days: int = field(
        default=30,
        metadata=_about(
            "Days for which the gateway keeps what a key has stored: responses, files and batches. 0 keeps "
            "nothing. Responses count from their last use."
        ),
    )
    paths: Paths = field(default_factory=lambda: default_paths(os.environ))

    @property
    def asked_format(self) -> Format | None:
        """The format that a client asks for; ``None`` takes what the swarm serves."""
        return None if self.format == "auto" else self.format

    @property
    def measurements_file(self) -> Path:
        """The list of what ``attested_only`` allows."""
        named = Path(self.measurements).expanduser() if self.measurements else None
        return named or self.paths.config / "measurements.toml"

    @property
    def protection(self) -> ProtectionLevel:
        """How answers are protected where nobody says."""
        if self.protect == "auto" and self.attested_only:
            return "attested"
        if self.protect == "auto":
            return "audited" if self.public and self.swarm == "public" else "fast"
        return self.protect

    @property
    def attested(self) -> bool:
        """Whether only peers are used that show what they run on, where nobody says."""
        return self.attested_only or self.protection == "attested"

    @property
    def own_blocks(self) -> PrivateEnds:
        """The blocks that a client runs itself."""
        return PrivateEnds.parse(self.private_ends)


def here() -> Paths:
    """This process's folders, whether ``config.toml`` in them can be read or not."""
    return default_paths(os.environ)


def to_environ(settings: Settings) -> dict[str, str]:
    """The variables from which a process that we start reads the same settings; its folders are its own."""
    values = {f"SHOAL_{name.upper()}": getattr(settings, name) for name in OPTIONS}
    return {name: " ".join(v) if isinstance(v, tuple) else str(v) for name, v in values.items()}


def load(flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from flags (``None`` means not given), environment, ``config.toml`` and defaults.

    Raises:
        UsageError: a value of the wrong type or out of bounds, an unknown name in ``config.toml``, or a
            ``config.toml`` that cannot be read.
    """
    environ = os.environ if environ is None else environ
    paths = default_paths(environ)
    values: dict[str, Any] = {}
    for name, value in read_config_file(paths.config_file, OPTIONS).items():
        values[name] = _read(name, value, f"{paths.config_file}")
    for option in OPTIONS:
        variable = f"SHOAL_{option.upper()}"
        if variable in environ:
            values[option] = _read(option, environ[variable], variable)
    for name, value in (flags or {}).items():
        if value is not None:
            values[name] = _read(name, value, f"--{name.replace('_', '-')}")
    settings = Settings(**values, paths=paths)
    check_values({name: getattr(settings, name) for name in OPTIONS})
    return settings


def _read(name: str, value: Any, source: str) -> Any:
    try:
        return option_value(value, _TYPES[name], size=name in _SIZES)
    except ValueError as error:
        raise UsageError(f"{source} has {value!r} for {name}, which needs {error}") from error


_SIZES = ("memory", "share_rate")
"""Options in bytes, which may be written with a unit."""
_TYPES: dict[str, Any] = get_type_hints(Settings) | dict.fromkeys(WORDS, str)
OPTIONS: tuple[str, ...] = tuple(f.name for f in dataclasses.fields(Settings) if f.name != "paths")
"""Every option's name, as ``config.toml`` spells it."""
ABOUT: Mapping[str, str] = {
    f.name: f.metadata["about"] for f in dataclasses.fields(Settings) if "about" in f.metadata
}
"""What each option is, by its name."""
