"""`shoal up` and `shoal serve`: be a node of a swarm."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from shoal.cli import options
from shoal.config import Settings
from shoal.errors import UsageError
from shoal.local.ending import end_with_stdin
from shoal.types import Span


def register(app: typer.Typer) -> None:
    app.command()(up)
    app.command()(serve)


def up(
    swarm: options.SwarmOption = None,
    public: options.PublicOption = None,
    model: options.ModelOption = None,
    memory: options.MemoryOption = None,
    device: options.DeviceOption = None,
    kernels: options.KernelsOption = None,
    threads: options.ThreadsOption = None,
    parallel: options.ParallelOption = None,
    yield_to_owner: options.YieldOption = None,
    public_address: options.PublicAddressOption = None,
    format: options.NodeFormatOption = None,
    kv: options.KVOption = None,
    adapter: options.AdapterOption = None,
    train: options.TrainOption = None,
    attest: options.AttestOption = None,
    operator: options.OperatorOption = None,
    credits: options.CreditsOption = None,
    price: options.PriceOption = None,
    pay_password_file: options.PayPasswordOption = None,
    redeem_at: options.RedeemAtOption = None,
    gateway: Annotated[bool, typer.Option(help="Serve the API and the web page too.")] = True,
    gateway_host: options.GatewayHostOption = None,
    gateway_port: options.GatewayPortOption = None,
    ollama_port: options.OllamaPortOption = None,
    database: options.DatabaseOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Join the swarm and serve the blocks it needs most. Runs until Ctrl-C."""
    settings = options.settings(
        swarm=swarm,
        public=public,
        model=model,
        memory=memory,
        device=device,
        kernels=kernels,
        threads=threads,
        parallel=parallel,
        yield_to_owner=yield_to_owner,
        public_address=public_address,
        format=format,
        kv=kv,
        adapter=adapter,
        train=train,
        attest=attest,
        operator=operator,
        credits=credits,
        price=price,
        pay_password_file=pay_password_file,
        redeem_at=redeem_at,
        gateway_host=gateway_host,
        gateway_port=gateway_port,
        ollama_port=ollama_port,
        database=database,
    )
    _serve(settings, None, as_json, gateway=gateway)


def serve(
    model: options.ModelArgument,
    span: Annotated[
        str | None,
        typer.Option(
            metavar="START:END|auto", help="Blocks to serve; if not given, those the swarm needs most."
        ),
    ] = None,
    swarm: options.SwarmOption = None,
    public: options.PublicOption = None,
    memory: options.MemoryOption = None,
    device: options.DeviceOption = None,
    kernels: options.KernelsOption = None,
    threads: options.ThreadsOption = None,
    fast: options.FastOption = None,
    parallel: options.ParallelOption = None,
    yield_to_owner: options.YieldOption = None,
    host: options.HostOption = None,
    port: options.PortOption = None,
    direct_port: options.DirectPortOption = None,
    public_address: options.PublicAddressOption = None,
    relay: options.RelayOption = None,
    port_map: options.PortMapOption = None,
    iroh: options.IrohOption = None,
    iroh_relay: options.IrohRelayOption = None,
    format: options.NodeFormatOption = None,
    kv: options.KVOption = None,
    adapter: options.AdapterOption = None,
    train: options.TrainOption = None,
    attest: options.AttestOption = None,
    operator: options.OperatorOption = None,
    credits: options.CreditsOption = None,
    price: options.PriceOption = None,
    pay_password_file: options.PayPasswordOption = None,
    redeem_at: options.RedeemAtOption = None,
    wire: options.WireOption = None,
    bootstrap: options.BootstrapOption = None,
    mdns: Annotated[bool | None, options.flag("mdns", "--mdns/--no-mdns")] = None,
    with_stdin: options.EndWithStdinOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Serve a span of MODEL. Ctrl-C or SIGTERM ends it once open sessions have ended.

    Of an .onnx graph the blocks are its segments; by a sha256: digest what is lacking comes from peers."""
    if with_stdin:
        end_with_stdin()
    settings = options.settings(
        swarm=swarm,
        public=public,
        model=model,
        memory=memory,
        device=device,
        kernels=kernels,
        threads=threads,
        fast=fast,
        parallel=parallel,
        yield_to_owner=yield_to_owner,
        host=host,
        port=port,
        direct_port=direct_port,
        public_address=public_address,
        relay=relay,
        port_map=port_map,
        iroh=iroh,
        iroh_relay=iroh_relay,
        format=format,
        kv=kv,
        adapter=adapter,
        train=train,
        attest=attest,
        operator=operator,
        credits=credits,
        price=price,
        pay_password_file=pay_password_file,
        redeem_at=redeem_at,
        wire=wire,
        bootstrap=bootstrap,
        mdns=mdns,
    )
    _serve(settings, span_of(span), as_json, fast=bool(fast))


def _serve(
    settings: Settings, span: Span | None, as_json: bool, *, gateway: bool = False, fast: bool = False
) -> None:
    import trio

    from shoal.cli.model_sharing import is_graph
    from shoal.cli.node.process import serve as live

    if is_graph(settings, settings.model):
        if gateway:
            raise UsageError(
                f"shoal up serves language models, and {settings.model} is a graph",
                check="serve it beside a gateway of its own: shoal gateway",
                next_command=f"shoal serve {settings.model}",
            )
        if settings.attest:
            raise UsageError(
                "--attest: nodes of graphs do not show what they run on",
                check="serve the graph without it, or a language model",
                next_command=f"shoal serve {settings.model}",
            )
        if settings.credits or settings.price:
            raise UsageError(
                "--credits and --price: nodes of graphs keep no accounts",
                check="leave them out",
                next_command=f"shoal serve {settings.model}",
            )
        if settings.adapter or settings.train:
            raise UsageError(
                "--adapter and --train: graphs take no adapters",
                check="leave it out",
                next_command=f"shoal serve {settings.model}",
            )
        from shoal.cli.graph.serve import serve_graph

        code = trio.run(partial(serve_graph, settings, span, as_json=as_json))
    elif fast:
        raise UsageError(
            f"--fast is for graphs, and {settings.model} is none",
            check="leave it out; --format says how exact a language model is",
        )
    else:
        code = trio.run(partial(live, settings, span, gateway=gateway, as_json=as_json))
    if code:
        raise typer.Exit(code)


def span_of(text: str | None) -> Span | None:
    """The value of ``--span``.

    Raises:
        UsageError: it is no span.
    """
    try:
        return Span.parse(text) if text and text != "auto" else None
    except ValueError as error:
        raise UsageError(f"--span: {error}") from error
