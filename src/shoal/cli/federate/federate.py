"""`shoal federate`: start, join and look at federated runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli import options
from shoal.cli.enter import in_swarm, looking
from shoal.cli.federate.told import tell_round, view_fields, view_lines
from shoal.cli.output import emit, say
from shoal.cli.progress import working
from shoal.cli.tune.tune import (
    AlphaOption,
    BatchOption,
    CutOption,
    DataOption,
    LayerOption,
    LongestOption,
    OwnBlocksOption,
    RankOption,
    SkipOption,
    WarmupOption,
)
from shoal.config import Settings
from shoal.errors import UsageError
from shoal.training.federated.compress import COMPRESSIONS, compression
from shoal.training.federated.means import MEAN_RULES, mean_rule

if TYPE_CHECKING:
    from shoal.client.federated.open import FederatedRun
    from shoal.client.federated.participant import RoundReport
    from shoal.client.federated.run_folder import RunFolder
    from shoal.client.swarm import Swarm as Connected
    from shoal.training.federated.terms import FederatedTerms

CodeArgument = Annotated[str, typer.Argument(metavar="CODE", help="The code that `start` has printed.")]
MemberFolderOption = Annotated[
    Path,
    typer.Option(
        "--out", metavar="FOLDER", help="Where key, state and adapter go; a run there that was ended goes on."
    ),
]
RateOption = Annotated[float, typer.Option(min=0, help="AdamW's rate after the warm-up; DeMo's, of signs.")]
OwnRateOption = Annotated[
    float | None,
    typer.Option(min=0, help="AdamW's rate after the warm-up; if not said, 0.0002. Not of a run by DeMo."),
]
OwnWarmupOption = Annotated[
    int | None,
    typer.Option(min=0, help="Steps in which the rate rises from 0; if not said, 10. Not of a run by DeMo."),
]
CompressOption = Annotated[
    str,
    typer.Option(metavar="|".join(COMPRESSIONS), help="How updates travel; with demo each round is a step."),
]
KeptOption = Annotated[
    int | None,
    typer.Option(
        min=1, max=512, help="With demo alone, numbers sent of each 4,096 of the adapter; if not said, 32."
    ),
]
DecayOption = Annotated[
    float | None,
    typer.Option(min=0, help="With demo alone, decay of each member's momentum in a step; if not said, 0.9."),
]
StepsOption = Annotated[
    int, typer.Option(min=0, help="Local steps of a round; 0: 20, and 1 with --compress demo.")
]
PatienceOption = Annotated[
    float, typer.Option(min=1, metavar="SECONDS", help="How long too few members are waited for.")
]
SecondsOption = Annotated[float, typer.Option(min=1, metavar="SECONDS", help="How long late members have.")]


if TYPE_CHECKING:
    OpensRun = Callable[[Connected, RunFolder], AbstractAsyncContextManager[FederatedRun]]


def register(app: typer.Typer) -> None:
    group = typer.Typer(
        help="Tune an adapter together with others, whose data stay where they are.", no_args_is_help=True
    )
    group.command()(start)
    group.command()(join)
    group.command()(status)
    app.add_typer(group, name="federate")


def start(
    model: options.ModelArgument,
    data: DataOption,
    out: MemberFolderOption = Path("federated"),
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, after which the run ends.")] = 10,
    steps: StepsOption = 0,
    least: Annotated[int, typer.Option(min=2, max=64, help="Members without whom there is no round.")] = 2,
    mean: Annotated[
        str, typer.Option(metavar="|".join(MEAN_RULES), help="How updates are averaged.")
    ] = "mean",
    radius: Annotated[
        float,
        typer.Option(
            min=0, help="Norm to which updates are clipped; 0: by rate, steps and size. Not with demo."
        ),
    ] = 0.0,
    outer_rate: Annotated[float, typer.Option(help="Rate of the outer step; 1 adds the mean as it is.")] = 1,
    outer_momentum: Annotated[float, typer.Option(min=0, help="Nesterov momentum of the outer step.")] = 0,
    proximal: Annotated[float, typer.Option(min=0, help="FedProx's strength; 0: none.")] = 0,
    secret: Annotated[
        bool, typer.Option("--secret", help="Add updates up so that nobody sees one; with --mean mean alone.")
    ] = False,
    noise: Annotated[
        float, typer.Option(min=0, help="Noise in each number of an update, in its norm's limit; 0: none.")
    ] = 0,
    compress: CompressOption = "none",
    kept: KeptOption = None,
    decay: DecayOption = None,
    gather: SecondsOption = 60,
    rank: RankOption = 8,
    alpha: AlphaOption = 16,
    layer: LayerOption = None,
    rate: RateOption = 2e-4,
    warmup: WarmupOption = 10,
    batch_tokens: BatchOption = 1024,
    longest: LongestOption = 0,
    cut: CutOption = False,
    skip_bad: SkipOption = False,
    seed: Annotated[int, typer.Option(help="Of the order of examples, and of the first matrices.")] = 0,
    own_blocks: OwnBlocksOption = False,
    patience: PatienceOption = 600,
    swarm: options.SwarmOption = None,
    public: options.PublicOption = None,
    only: options.OnlyOption = None,
    bootstrap: options.BootstrapOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Start a run that tunes a LoRA adapter of MODEL, and take part in it; prints the code to join by."""
    settings = options.settings(swarm=swarm, public=public, model=model, only=only, bootstrap=bootstrap)
    rule, form = mean_rule(mean), compression(compress)
    from shoal.client.federated.open import FederatedOptions, start_run
    from shoal.client.tuning.open import TuningData
    from shoal.client.tuning.tuner import TuningOptions

    local = TuningOptions(rate=rate, warmup=warmup, batch_tokens=batch_tokens)
    given = replace(local, rank=rank, alpha=alpha, layers=tuple(layer or ()), seed=seed)
    chosen = FederatedOptions(
        rounds=rounds,
        steps=steps,
        rule=rule,
        radius=radius,
        outer_rate=outer_rate,
        outer_momentum=outer_momentum,
        proximal=proximal,
        least=least,
        secret=secret,
        noise=noise,
        compress=form,
        kept=kept,
        decay=decay,
        gather_s=gather,
        part_s=gather,
    )
    examples = TuningData(path=data, longest=longest, cut=cut, skipped=_skipping(skip_bad))

    def opened(connected: Connected, folder: RunFolder) -> AbstractAsyncContextManager[FederatedRun]:
        common = (connected, settings.model, examples, given, chosen, folder)
        return start_run(*common, own_blocks=own_blocks, patience_s=patience)

    _take_part(settings, out, opened, as_json=as_json)


def join(
    code: CodeArgument,
    data: DataOption,
    out: MemberFolderOption = Path("federated"),
    model: options.ModelOption = None,
    rate: OwnRateOption = None,
    warmup: OwnWarmupOption = None,
    batch_tokens: BatchOption = 1024,
    longest: LongestOption = 0,
    cut: CutOption = False,
    skip_bad: SkipOption = False,
    own_blocks: OwnBlocksOption = False,
    patience: PatienceOption = 600,
    swarm: options.SwarmOption = None,
    public: options.PublicOption = None,
    only: options.OnlyOption = None,
    bootstrap: options.BootstrapOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Take part in the run of CODE with data of this machine."""
    settings = options.settings(swarm=swarm, public=public, model=model, only=only, bootstrap=bootstrap)
    from shoal.client.federated.look import read_code
    from shoal.client.federated.open import join_run
    from shoal.client.tuning.open import TuningData
    from shoal.client.tuning.tuner import TuningOptions

    run = read_code(code)
    said = {name: value for name, value in (("rate", rate), ("warmup", warmup)) if value is not None}
    given = replace(TuningOptions(batch_tokens=batch_tokens), **said)
    examples = TuningData(path=data, longest=longest, cut=cut, skipped=_skipping(skip_bad))

    def look(terms: FederatedTerms) -> None:
        if terms.demo is not None and said:
            raise UsageError(
                f"--{next(iter(said))} is of AdamW, and this run goes by DeMo, with its own",
                check=f"leave {' and '.join(f'--{name}' for name in said)} out",
                next_command=f"shoal federate status {code}",
            )

    def opened(connected: Connected, folder: RunFolder) -> AbstractAsyncContextManager[FederatedRun]:
        return join_run(
            connected,
            run,
            examples,
            given,
            folder,
            model=model or "",
            own_blocks=own_blocks,
            patience_s=patience,
            look=look,
        )

    _take_part(settings, out, opened, as_json=as_json)


def status(
    code: CodeArgument,
    swarm: options.SwarmOption = None,
    public: options.PublicOption = None,
    bootstrap: options.BootstrapOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Show the terms of the run of CODE, who takes part, and how far each member is."""
    settings = options.settings(swarm=swarm, public=public, bootstrap=bootstrap)
    from shoal.client.federated.look import look_at_run, read_code

    run = read_code(code)
    view = looking(settings, lambda onlooker: look_at_run(onlooker.network, run))
    emit(view_fields(view), as_json, lambda: view_lines(view))


def _skipping(skip_bad: bool) -> Callable[[Path, int, str], None] | None:
    def skip(path: Path, line: int, why: str) -> None:
        say(f"line {line} of {path} is skipped: {why}")

    return skip if skip_bad else None


def _take_part(
    settings: Settings,
    out: Path,
    opened: Callable[[Connected, RunFolder], AbstractAsyncContextManager[FederatedRun]],
    *,
    as_json: bool,
) -> None:
    """One member of a run, until its last round is over."""
    from shoal.client.federated.run_folder import RunFolder

    folder = RunFolder(out)
    identity = folder.identity()

    async def run(connected: Connected) -> RoundReport | None:
        last: RoundReport | None = None
        with working("opening the run") as report:
            async with opened(connected, folder) as running:
                say(f"others join with: shoal federate join {running.code} --data FILE.jsonl")
                report("waiting for members", 0, running.terms.rounds)
                async for last in running.participant.run():
                    tell_round(last, report, as_json)
        return last

    last = in_swarm(settings, run, identity)
    if last is None:
        raise UsageError(f"{out} holds this run already, to its end", check="name another folder with --out")
    fields: dict[str, Any] = {
        "adapter": str(folder.adapter),
        "rounds": last.rounds,
        "digest": last.digest,
        "agreed": last.agreed,
    }
    emit(fields, as_json, lambda: f"the adapter is in {folder.adapter}: shoal serve MODEL --adapter PATH")
