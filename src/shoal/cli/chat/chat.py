"""`shoal run` and `shoal chat`: ask a model that the swarm serves."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from shoal.cli import options
from shoal.cli.ask import (
    AnswerRequest,
    answer_fields,
    ask,
    keep_receipts,
    say_protection,
    say_speed,
    say_trace,
    user,
)
from shoal.cli.enter import in_swarm
from shoal.cli.output import check_output, emit, say
from shoal.cli.progress import working
from shoal.cli.shell import names
from shoal.errors import EXIT_FAILURE, UsageError

if TYPE_CHECKING:
    from shoal.client.swarm import Swarm as Connected
    from shoal.metrics.trace import Trace

MAX_STDIN = 64 << 20
"""Characters read from stdin; a longer prompt fits no model, and is refused rather than cut."""

CHAT_TEMPERATURE = 0.7
"""Of a conversation, where neither its user nor the model's makers name one."""

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
"""The options by which a token is chosen, by their names in the library."""
MaxTokensOption = Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)]
TemperatureOption = Annotated[
    float | None,
    typer.Option(
        help="0 takes the likeliest token; higher is more random. By default the model's own.",
        show_default=False,
    ),
]
TopKOption = Annotated[
    int | None,
    typer.Option(help="Choose among the k likeliest tokens; 0 turns this off.", show_default=False),
]
TopPOption = Annotated[
    float | None,
    typer.Option(
        help="Choose among the likeliest tokens whose probabilities add up to this.", show_default=False
    ),
]
MinPOption = Annotated[
    float | None,
    typer.Option(
        help="Choose among tokens at least this likely, relative to the likeliest.", show_default=False
    ),
]
RepetitionPenaltyOption = Annotated[
    float | None,
    typer.Option(
        "--repetition-penalty",
        help="Divide the score of tokens that already occurred by this.",
        show_default=False,
    ),
]
StopOption = Annotated[
    list[str] | None, typer.Option(help="End the answer before this text; repeat the option for more.")
]
SeedOption = Annotated[
    int | None, typer.Option(help="The same seed gives the same answer.", show_default=False)
]
ReceiptsOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write the answer there with what its hops have signed of it, for shoal verify.",
        show_default=False,
    ),
]
ImageOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--image",
        metavar="FILE",
        help="Show the model a PNG or JPEG; repeat the option for several.",
        show_default=False,
    ),
]
RawOption = Annotated[bool, typer.Option("--raw", help="Send the prompt without the chat template.")]


def register(app: typer.Typer) -> None:
    app.command()(run)
    app.command()(chat)


def run(
    model: options.ModelArgument,
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt; text from stdin is appended to it.")
    ] = None,
    swarm: options.SwarmOption = None,
    public: options.PublicOption = None,
    bootstrap: options.BootstrapOption = None,
    format: options.FormatOption = None,
    device: options.DeviceOption = None,
    max_tokens: MaxTokensOption = 256,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    min_p: MinPOption = None,
    repetition_penalty: RepetitionPenaltyOption = None,
    stop: StopOption = None,
    seed: SeedOption = None,
    raw: RawOption = False,
    image: ImageOption = None,
    speculate: options.SpeculateOption = None,
    draft: options.DraftOption = None,
    protect: options.ProtectOption = None,
    audit_budget: options.AuditBudgetOption = None,
    only: options.OnlyOption = None,
    private_ends: options.PrivateEndsOption = None,
    soft_prompt: options.SoftPromptOption = None,
    credits: options.CreditsOption = None,
    max_price: options.MaxPriceOption = None,
    pay_budget: options.PayBudgetOption = None,
    pay_password_file: options.PayPasswordOption = None,
    attested_only: options.AttestedOnlyOption = None,
    measurements: options.MeasurementsOption = None,
    trace: Annotated[bool, typer.Option("--trace", help="Print per-hop timings afterwards.")] = False,
    receipts: ReceiptsOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Answer one prompt. Streams the answer to stdout.

    Exit code 1 if an audit finds that a hop has computed something else.
    """
    settings = options.settings(
        swarm=swarm,
        public=public,
        bootstrap=bootstrap,
        model=model,
        format=format,
        device=device,
        speculate=speculate,
        draft=draft,
        protect=protect,
        audit_budget=audit_budget,
        only=only,
        private_ends=private_ends,
        soft_prompt=soft_prompt,
        credits=credits,
        max_price=max_price,
        pay_budget=pay_budget,
        pay_password_file=pay_password_file,
        attested_only=attested_only,
        measurements=measurements,
    )
    check_output(receipts)
    text = whole_prompt(prompt, sys.stdin)
    question = AnswerRequest(
        settings.model,
        messages=user(text),
        raw=text if raw else None,
        images=tuple(image or ()),
        max_tokens=max_tokens,
        stop=tuple(stop or ()),
        format=settings.asked_format,
        sampling=dict(
            zip(SAMPLING, (temperature, top_k, top_p, min_p, repetition_penalty, seed), strict=True)
        ),
        receipts=receipts is not None,
    )

    once = partial(_answer, question=question, receipts=receipts, traced=trace, stream=not as_json)
    _say_how(in_swarm(settings, once), as_json=as_json)


async def _answer(
    opened: Connected, question: AnswerRequest, receipts: Path | None, *, traced: bool, stream: bool
) -> dict[str, Any]:
    """The answer to the one prompt, and what is told of it."""
    answer = await ask(opened, question, stream=stream)
    fields = answer_fields(answer, question)
    if receipts is not None and answer.receipts is not None:
        keep_receipts(answer.receipts, receipts)
    return fields | ({"trace": _trace(opened.rings.trace, fields)} if traced else {})


def _say_how(fields: dict[str, Any], *, as_json: bool) -> None:
    """How an answer came about: all of it as JSON, or beside the answer.

    Raises:
        typer.Exit: an audit found that a hop has computed something else.
    """
    if as_json:
        emit(fields, as_json, lambda: "")
    else:
        say_trace(fields.get("trace"))
        say_speed(fields)
        say_protection(fields["protection"])
    if any(audit["verdict"] == "cheat" for audit in fields["protection"]["audits"]):
        raise typer.Exit(EXIT_FAILURE)


def chat(
    model: Annotated[
        str | None,
        typer.Argument(
            help="The model; if not given, the default model.",
            show_default=False,
            autocompletion=names.models,
        ),
    ] = None,
    swarm: options.SwarmOption = None,
    public: options.PublicOption = None,
    bootstrap: options.BootstrapOption = None,
    format: options.FormatOption = None,
    device: options.DeviceOption = None,
    max_tokens: MaxTokensOption = 512,
    temperature: TemperatureOption = None,
    seed: SeedOption = None,
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
    system: Annotated[str, typer.Option(help="System message.", show_default=False)] = "",
) -> None:
    """Chat with a model. /help lists the commands you can type."""
    settings = options.settings(
        swarm=swarm,
        public=public,
        bootstrap=bootstrap,
        model=model,
        format=format,
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
    )
    sampling = {"temperature": temperature, "seed": seed}
    wanted = settings.asked_format
    asking = AnswerRequest(
        settings.model, max_tokens=max_tokens, format=wanted, sampling=sampling, temperature=CHAT_TEMPERATURE
    )

    async def talk(opened: Connected) -> None:
        from shoal.cli.chat.commands import NAMES
        from shoal.cli.chat.conversation import Conversation
        from shoal.cli.chat.loop import Talk
        from shoal.cli.chat.reader import reader

        with working(f"looking for {settings.model}") as report:
            await opened.resolve(settings.model, report)  # a name that does not exist is told at once
        typed = sys.stdin.isatty()
        if typed:
            say(f"chatting with {settings.model}; /help lists the commands, Ctrl-D ends the chat")
        conversation = Conversation(settings.model, system)
        lines = reader(settings.paths.chat_history, [f"/{name}" for name in NAMES])
        await Talk(opened, conversation, asking, forgiving=typed).run(lines)

    in_swarm(settings, talk)


def _trace(traced: Trace, fields: dict[str, Any]) -> dict[str, Any]:
    return {"steps": traced.steps, "reroutes": traced.reroutes} | {
        name: fields[name] for name in ("own", "speculation")
    }


def whole_prompt(argument: str | None, stdin: TextIO) -> str:
    """The prompt: the argument, then what comes on stdin unless that is a terminal, a blank line between.

    Raises:
        UsageError: there is neither, or as :func:`read_piped`.
    """
    parts = [part for part in (argument or "", read_piped(stdin).removesuffix("\n")) if part]
    if not parts:
        raise UsageError("there is no prompt", next_command='shoal run MODEL "Why is the sky blue?"')
    return "\n\n".join(parts)


def read_piped(stdin: TextIO) -> str:
    """What is piped in; nothing where stdin is a terminal.

    Raises:
        UsageError: it is no text, or has no end in sight.
    """
    if stdin.isatty():
        return ""
    try:
        piped = stdin.read(MAX_STDIN + 1)
    except UnicodeDecodeError as error:
        raise UsageError("stdin is not UTF-8 text", check="check the file that is piped in") from error
    if len(piped) > MAX_STDIN:
        raise UsageError(f"stdin is longer than {MAX_STDIN >> 20} Mi characters")
    return piped
