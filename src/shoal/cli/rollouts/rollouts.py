"""`shoal rollouts`: many samples of many prompts into a file, in the background of a swarm."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli import options
from shoal.cli.enter import in_swarm
from shoal.cli.output import check_output, emit, many, say
from shoal.cli.progress import working

if TYPE_CHECKING:
    from shoal.client.rollouts.run import RolloutOptions, RolloutsProgress
    from shoal.client.swarm import Swarm as Connected
    from shoal.config import Settings
    from shoal.progress import Progress

PromptsOption = Annotated[
    Path, typer.Option(metavar="FILE.jsonl", help="Prompts, one on each line.", show_default=False)
]
SamplesOption = Annotated[
    Path,
    typer.Option(metavar="FILE.jsonl", help="Where samples go; a run there that was killed goes on."),
]
SkipPromptsOption = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out lines that are no prompts, and say which.")
]
AtOnceOption = Annotated[
    int, typer.Option(min=0, max=64, help="Most sessions at once; 0: as many as the nodes take, 64 at most.")
]
SAID = 20
"""Lines that were skipped, of which each is told; then only how many."""


def register(app: typer.Typer) -> None:
    app.command()(rollouts)


def rollouts(
    model: options.ModelArgument,
    prompts: PromptsOption,
    out: SamplesOption = Path("samples.jsonl"),
    samples: Annotated[int, typer.Option("-n", "--samples", min=1, help="Samples of each prompt.")] = 16,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a sample.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Keep the k likeliest tokens; 0 keeps all.")] = 0,
    top_p: Annotated[
        float, typer.Option(help="Keep the likeliest tokens that together have this probability.")
    ] = 1.0,
    min_p: Annotated[
        float, typer.Option(help="Keep tokens at least this likely, relative to the likeliest.")
    ] = 0.0,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="End a sample before this text; repeat it to give several.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="From which the seed of each sample follows.")] = 0,
    at_once: AtOnceOption = 0,
    receipts: Annotated[
        bool, typer.Option("--receipts", help="Have the hops sign each sample, into files beside FILE.")
    ] = False,
    skip_bad: SkipPromptsOption = False,
    swarm: options.SwarmOption = None,
    public: options.PublicOption = None,
    format: options.FormatOption = None,
    protect: options.ProtectOption = None,
    only: options.OnlyOption = None,
    soft_prompt: options.SoftPromptOption = None,
    credits: options.CreditsOption = None,
    max_price: options.MaxPriceOption = None,
    pay_budget: options.PayBudgetOption = None,
    pay_password_file: options.PayPasswordOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Make many samples of each prompt with MODEL, behind all whom somebody waits for."""
    settings = options.settings(
        swarm=swarm,
        public=public,
        model=model,
        format=format,
        protect=protect,
        only=only,
        soft_prompt=soft_prompt,
        credits=credits,
        max_price=max_price,
        pay_budget=pay_budget,
        pay_password_file=pay_password_file,
    )
    check_output(out)
    from shoal.client.rollouts.run import RolloutOptions
    from shoal.client.sampling import Sampling

    chosen = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    wanted = RolloutOptions(
        samples=samples,
        max_tokens=max_tokens,
        sampling=chosen,
        stop=tuple(stop or ()),
        seed=seed,
        at_once=at_once,
        receipts=receipts,
    )
    done, skipped = _made(settings, prompts, out, wanted, skip_bad=skip_bad)
    if skipped:
        say(f"{many(skipped, 'line')} of {prompts} skipped")
    fields: dict[str, Any] = {
        "samples": done.samples,
        "made": done.made,
        "tokens": done.tokens,
        "seconds": round(done.seconds, 3),
        "skipped": skipped,
        "out": str(out),
    }
    emit(fields, as_json, lambda: f"{many(done.made, 'sample')} in {out}, {_speed(done)}")


def _made(
    settings: Settings, prompts: Path, out: Path, wanted: RolloutOptions, *, skip_bad: bool
) -> tuple[RolloutsProgress, int]:
    """What the run has come to, and how many lines were left out."""
    skipped = 0

    def skip(line: int, why: str) -> None:
        nonlocal skipped
        skipped += 1
        if skipped <= SAID:
            say(f"line {line} of {prompts} is skipped: {why}")

    async def run(opened: Connected) -> RolloutsProgress:
        with working(f"asking {settings.model}") as report:

            def tell(done: RolloutsProgress) -> None:
                _tell(done, report)

            return await opened.rollouts(
                settings.model,
                prompts,
                out,
                options=wanted,
                format=settings.asked_format,
                skipped=skip if skip_bad else None,
                told=tell,
            )

    return in_swarm(settings, run), skipped


def _tell(done: RolloutsProgress, report: Progress) -> None:
    how = "others are waited for" if done.resting else f"{many(done.at_once, 'session')} at once"
    report(f"{done.made} of {many(done.samples, 'sample')}, {_speed(done)}, {how}", done.made, done.samples)


def _speed(done: RolloutsProgress) -> str:
    return f"{done.tokens_s:.0f} tokens/s" if done.tokens else "all of them from before"
