"""`shoal gateway`: the OpenAI API and the page, as a client of a swarm. `shoal up` starts one too."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from shoal.cli import options
from shoal.local.ending import end_with_stdin

Origin = Annotated[
    list[str] | None,
    typer.Option(
        "--gateway-origin",
        metavar="ORIGIN",
        help="Allow web pages of this origin to call the API.",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    app.command()(gateway)


def gateway(
    gateway_host: options.GatewayHostOption = None,
    gateway_port: options.GatewayPortOption = None,
    ollama_port: options.OllamaPortOption = None,
    database: options.DatabaseOption = None,
    gateway_origins: Origin = None,
    payment: options.PaymentOption = None,
    swarm: options.SwarmOption = None,
    public: options.PublicOption = None,
    model: options.ModelOption = None,
    device: options.DeviceOption = None,
    speculate: options.SpeculateOption = None,
    draft: options.DraftOption = None,
    protect: options.ProtectOption = None,
    audit_budget: options.AuditBudgetOption = None,
    canaries: options.CanariesOption = None,
    only: options.OnlyOption = None,
    private_ends: options.PrivateEndsOption = None,
    soft_prompt: options.SoftPromptOption = None,
    attested_only: options.AttestedOnlyOption = None,
    measurements: options.MeasurementsOption = None,
    bootstrap: options.BootstrapOption = None,
    with_stdin: options.EndWithStdinOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Serve OpenAI's API and a web page for a swarm. Any program that uses OpenAI's API can use it."""
    if with_stdin:
        end_with_stdin()
    settings = options.settings(
        gateway_host=gateway_host,
        gateway_port=gateway_port,
        ollama_port=ollama_port,
        database=database,
        gateway_origins=gateway_origins,
        payment=payment,
        swarm=swarm,
        public=public,
        model=model,
        device=device,
        speculate=speculate,
        draft=draft,
        protect=protect,
        audit_budget=audit_budget,
        canaries=canaries,
        only=only,
        private_ends=private_ends,
        soft_prompt=soft_prompt,
        attested_only=attested_only,
        measurements=measurements,
        bootstrap=bootstrap,
    )
    import trio

    from shoal.cli.gateway.process import run

    code = trio.run(partial(run, settings, as_json=as_json))
    if code:
        raise typer.Exit(code)
