"""`shoal tune`: tune an adapter of a model through the nodes that serve it."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli import options
from shoal.cli.enter import in_swarm
from shoal.cli.output import emit, many, say
from shoal.cli.progress import working
from shoal.errors import UsageError

if TYPE_CHECKING:
    from shoal.client.swarm import Swarm as Connected
    from shoal.client.tuning.tuned import TuningMethod
    from shoal.client.tuning.tuner import Tuner, TuningStep
    from shoal.progress import Progress

DataOption = Annotated[Path, typer.Option(metavar="FILE.jsonl", help="Examples, one on each line.")]
OutOption = Annotated[
    Path, typer.Option(metavar="FOLDER", help="Where the adapter goes; a run there that was killed goes on.")
]
EvaluationOption = Annotated[
    Path | None,
    typer.Option(
        "--eval",
        metavar="FILE.jsonl",
        help="Examples to look at, and not to learn from.",
        show_default=False,
    ),
]
LayerOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Last name of the linear layers to tune; repeat it to give several. If not given, all.",
        show_default=False,
    ),
]
LongestOption = Annotated[
    int, typer.Option(min=0, help="Most tokens of an example; 0: the model's context, 2,048 at most.")
]
SkipOption = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out lines that are no examples, and say which.")
]
OwnBlocksOption = Annotated[
    bool,
    typer.Option(
        "--own-blocks", help="Run all blocks on this machine, so that nodes see nothing of the data."
    ),
]
MethodOption = Annotated[
    str, typer.Option(metavar="lora|prompt", help="What to tune: an adapter, or a soft prompt.")
]
PromptTokensOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=512,
        help="With --method prompt, virtual tokens before each prompt; if not given, 20.",
        show_default=False,
    ),
]
AdapterRankOption = Annotated[
    int | None,
    typer.Option(
        "--rank",
        min=1,
        max=64,
        help="With --method lora, rank of the adapter's matrices; if not given, 8.",
        show_default=False,
    ),
]
AdapterAlphaOption = Annotated[
    float | None,
    typer.Option(
        "--alpha",
        min=0.001,
        help="With --method lora, what it adds is multiplied by alpha / rank; if not given, 16.",
        show_default=False,
    ),
]
RankOption = Annotated[int, typer.Option(min=1, max=64, help="Rank of the adapter's matrices.")]
AlphaOption = Annotated[float, typer.Option(min=0.001, help="What it adds is multiplied by alpha / rank.")]
TuningRateOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="AdamW's learning rate after the warm-up; if not given, 2e-4, and 1e-2 of a soft prompt.",
        show_default=False,
    ),
]
WarmupOption = Annotated[int, typer.Option(min=0, help="Steps in which the rate rises from 0.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Tokens that travel together.")]
CutOption = Annotated[bool, typer.Option("--cut", help="Cut longer examples, instead of refusing them.")]
RATES = {"lora": 2e-4, "prompt": 1e-2}
"""AdamW's, by method: a soft prompt's rows are as long as embeddings, and far fewer."""
RANK, ALPHA, PROMPT_TOKENS = 8, 16.0, 20
"""Where none are given."""
PLOT = "loss.svg"
"""The losses of a run against its steps, beside the adapter."""
SAID = 20
"""Lines that were skipped, of which each is told; then only how many."""


def register(app: typer.Typer) -> None:
    app.command()(tune)


def tune(
    model: options.ModelArgument,
    data: DataOption,
    out: OutOption = Path("adapter"),
    evaluation: EvaluationOption = None,
    method: MethodOption = "lora",
    prompt_tokens: PromptTokensOption = None,
    rank: AdapterRankOption = None,
    alpha: AdapterAlphaOption = None,
    layer: LayerOption = None,
    rate: TuningRateOption = None,
    warmup: WarmupOption = 10,
    epochs: Annotated[int, typer.Option(min=1, help="How often each example is seen.")] = 1,
    steps: Annotated[int, typer.Option(min=0, help="Most steps; 0 ends with the last epoch.")] = 0,
    batch_tokens: BatchOption = 1024,
    accumulate: Annotated[int, typer.Option(min=1, help="Batches of one step.")] = 1,
    longest: LongestOption = 0,
    cut: CutOption = False,
    skip_bad: SkipOption = False,
    seed: Annotated[int, typer.Option(help="Of the order of examples, and of the first matrices.")] = 0,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between two checkpoints.")] = 50,
    own_blocks: OwnBlocksOption = False,
    swarm: options.SwarmOption = None,
    public: options.PublicOption = None,
    only: options.OnlyOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Tune a LoRA adapter or a soft prompt of MODEL through the nodes that serve it; data stay here."""
    settings = options.settings(swarm=swarm, public=public, model=model, only=only)
    from shoal.client.tuning.open import TuningData, open_tuner
    from shoal.client.tuning.tuned import tuning_method
    from shoal.client.tuning.tuner import TuningOptions

    chosen = tuning_method(method)
    of_lora = {"--rank": rank, "--alpha": alpha, "--layer": layer}
    _check_given(chosen, {"lora": of_lora, "prompt": {"--prompt-tokens": prompt_tokens}})
    skipped: Counter[Path] = Counter()
    given = TuningOptions(
        method=chosen,
        prompt_tokens=prompt_tokens or PROMPT_TOKENS,
        rank=rank or RANK,
        alpha=alpha or ALPHA,
        layers=tuple(layer or ()),
        rate=RATES[chosen] if rate is None else rate,
        warmup=warmup,
        epochs=epochs,
        steps=steps,
        batch_tokens=batch_tokens,
        accumulate=accumulate,
        seed=seed,
        save_every=save_every,
        evaluate_every=save_every,
    )
    skip = _skipping(skipped) if skip_bad else None
    examples = TuningData(path=data, evaluation=evaluation, longest=longest, cut=cut, skipped=skip)

    async def run(opened: Connected) -> TuningStep | None:
        with working(f"tuning {settings.model}") as report:
            tuner = await open_tuner(opened, settings.model, examples, given, out, own_blocks=own_blocks)
            return await _all_steps(tuner, out, report, as_json)

    last = in_swarm(settings, run)
    if last is None:
        raise UsageError(f"{out} holds this run already, to its end", check="name another folder with --out")
    for path, count in skipped.items():
        say(f"{many(count, 'line')} of {path} skipped")
    fields = {
        "adapter": str(out),
        "steps": last.steps,
        "loss": _finite(last.loss),
        "evaluation": _finite(last.evaluation),
        "plot": str(out / PLOT) if (out.expanduser() / PLOT).is_file() else None,
    }
    emit(fields, as_json, lambda: f"what was tuned is in {out}: {_use_of(model, out, chosen)}")


async def _all_steps(tuner: Tuner, out: Path, report: Progress, as_json: bool) -> TuningStep | None:
    """The last step of a run. Each is told, and all are drawn in ``out``, also where the run is cut."""
    last: TuningStep | None = None
    try:
        async for last in tuner.run():
            _tell(last, report, as_json)
    finally:
        tuner.close()
        _draw(tuner, out)
    return last


def _draw(tuner: Tuner, folder: Path) -> None:
    from shoal.bench.report.losses import losses_plot
    from shoal.client.tuning.checkpoint import STATE

    folder = folder.expanduser()
    drawn = losses_plot(tuner.history, tuner.evaluations)
    if drawn is None or not (folder / STATE).exists():  # in a folder without a checkpoint no run would begin
        return
    try:
        (folder / PLOT).write_text(drawn, encoding="utf-8")
    except OSError as error:
        say(f"{folder / PLOT} cannot be written ({error.strerror or error}); all else of the run is there")


def _check_given(method: TuningMethod, options_of: Mapping[TuningMethod, Mapping[str, object]]) -> None:
    """Refuse what another method than the chosen one would heed. Raises UsageError."""
    for other, given in options_of.items():
        names = [name for name, value in given.items() if value]
        if other != method and names:
            raise UsageError(
                f"{' and '.join(names)}: only with --method {other}",
                check=f"leave that out, or tune by --method {other}",
            )


def _skipping(skipped: Counter[Path]) -> Callable[[Path, int, str], None]:
    """Counts lines that are left out, and tells of the first of a file."""

    def skip(path: Path, line: int, why: str) -> None:
        skipped[path] += 1
        if skipped[path] <= SAID:
            say(f"line {line} of {path} is skipped: {why}")

    return skip


def _use_of(model: str, out: Path, method: str) -> str:
    """The command that uses what was tuned."""
    if method == "prompt":
        return f"shoal run {model}:{out.resolve().name} --soft-prompt {out}"
    return f"shoal serve {model} --adapter {out}"


def _tell(step: TuningStep, report: Progress, as_json: bool) -> None:
    seen = "" if step.evaluation is None else f", evaluation {step.evaluation:.4f}"
    odd = f", {many(step.skipped, 'step')} without a finite loss" if step.skipped else ""
    lost = f", {many(step.replaced, 'hop')} replaced" if step.replaced else ""
    report(f"loss {step.loss:.4f}{seen}, {step.tokens_s:.0f} tokens/s{odd}{lost}", step.step, step.steps)
    if as_json:
        said = {
            "step": step.step,
            "loss": _finite(step.loss),
            "tokens_s": step.tokens_s,
            "evaluation": _finite(step.evaluation),
        }
        sys.stdout.write(json.dumps(said, allow_nan=False) + "\n")
        sys.stdout.flush()


def _finite(loss: float | None) -> float | None:
    """JSON has no word for NaN."""
    return loss if loss is not None and math.isfinite(loss) else None
