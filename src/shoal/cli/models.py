"""`shoal models`: the models on this machine and those that can be had."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli import options
from shoal.cli.output import emit, printable
from shoal.cli.progress import working
from shoal.cli.shell import names
from shoal.errors import UsageError
from shoal.executor.kernels.built import kernels_built
from shoal.routing.formats import choose_format
from shoal.types import DIGEST

if TYPE_CHECKING:
    from rich.table import Table

    from shoal.models.adapters.kept import KeptAdapter, KeptAdapters
    from shoal.models.graph.graph_store import GraphStore, LocalGraph
    from shoal.models.store.local_model import LocalModel
    from shoal.models.store.store import ModelStore

Installed = Annotated[
    str,
    typer.Argument(metavar="NAME", help="The model's local name.", autocompletion=names.installed_models),
]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="List, fetch, share, remove and show models.", no_args_is_help=True)
    group.command("list")(list_models)
    for command in (pull, rm, share, show):
        group.command()(command)
    app.add_typer(group, name="models")


def list_models(as_json: options.JsonOption = False) -> None:
    """List the models on this machine and in the catalogue."""
    from shoal.models.store.catalogue import CATALOGUE

    here = [{**model_fields(model), "here": True} for model in _store().list()]
    here += [{**graph_fields(graph), "here": True} for graph in _graphs().list()]
    here += [{**adapter_fields(kept), "here": True} for kept in _adapters().list()]
    names = {fields["name"] for fields in here}
    others = [
        {"name": entry.name, "here": False, "about": entry.about, "download": entry.download}
        for entry in CATALOGUE
        if entry.name not in names
    ]
    emit({"models": here + others}, as_json, lambda: models_table(here + others))


def pull(
    model: options.ModelArgument,
    span: Annotated[
        str | None,
        typer.Option(metavar="START:END", help="From peers: only these blocks; if not given, all."),
    ] = None,
    swarm: Annotated[
        str | None,
        typer.Option(
            help="Get it from the peers of this swarm. A sha256: digest always comes from peers.",
            show_default=False,
            autocompletion=names.swarms,
        ),
    ] = None,
    public: options.PublicOption = None,
    bootstrap: options.BootstrapOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Fetch a model or graph, by its sha256: digest from peers. A local folder or snapshot is not copied.

    MODEL:ADAPTER fetches an adapter from the peers that serve the model with it."""
    from shoal.cli.model_sharing import fetched_line, pull_adapter, pull_from_peers
    from shoal.cli.node.node import span_of
    from shoal.models.adapters.names import split_name
    from shoal.models.graph.graph_store import LocalGraph

    base, adapter = split_name(model)
    if adapter is None and span is None and swarm is None and not public and not DIGEST.fullmatch(model):
        with working(f"getting {model}") as report:
            found = _store().pull(model, report)
        emit(model_fields(found), as_json, lambda: f"{found.name}: {found.path}")
        return
    settings = options.settings(swarm=swarm, public=public, bootstrap=bootstrap)
    if adapter is not None:
        if span is not None:
            raise UsageError("--span: an adapter comes whole", check="leave it out")
        kept, fetched = pull_adapter(settings, base, adapter)
        fields, line = adapter_fields(kept), fetched_line(fetched)
        emit(fields | {"fetched": fetched.shown()}, as_json, lambda: f"{kept.title}: {kept.folder}\n{line}")
        return
    found, fetched = pull_from_peers(settings, model, span_of(span))
    name, path = found.name, found.path
    fields = graph_fields(found) if isinstance(found, LocalGraph) else model_fields(found)
    fields |= {"fetched": fetched.shown()}
    emit(fields, as_json, lambda: f"{name}: {path}\n{fetched_line(fetched)}")


def share(
    name: Installed,
    swarm: options.SwarmOption = None,
    public: options.PublicOption = None,
    host: options.HostOption = None,
    port: options.PortOption = None,
    bootstrap: options.BootstrapOption = None,
    with_stdin: options.EndWithStdinOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Give a model or graph to the peers of a swarm without serving it. Runs until Ctrl-C."""
    from shoal.cli.model_sharing import share_model
    from shoal.local.ending import end_with_stdin

    if with_stdin:
        end_with_stdin()
    settings = options.settings(swarm=swarm, public=public, host=host, port=port, bootstrap=bootstrap)
    share_model(settings, name, as_json=as_json)


def rm(name: Installed, as_json: options.JsonOption = False) -> None:
    """Remove a model; by MODEL:ADAPTER, an adapter that came from peers. A folder used in place stays."""
    from shoal.models.adapters.names import split_name

    base, adapter = split_name(name)
    if adapter is not None and (kept := _adapters().rm(adapter, base)) is not None:
        removed = kept.title
    else:
        removed = (_graphs().rm(name) or _store().rm(name)).name
    emit({"removed": removed}, as_json, lambda: f"removed {removed}")


def show(name: Installed, as_json: options.JsonOption = False) -> None:
    """Show one model: its folder, digest and shape, and the format that this machine would choose."""
    with working(f"looking at {name}"):
        graph = _graphs().find(name)
        fields = model_fields(_store().show(name)) if graph is None else graph_fields(graph)
    emit(
        fields, as_json, lambda: "\n".join(f"{key}: {printable(str(value))}" for key, value in fields.items())
    )


def model_fields(model: LocalModel) -> dict[str, Any]:
    """A model on this machine as ``--json`` shows it; sizes in bytes, the context in tokens.

    The format is the one in which this machine would hold it, if nobody in the swarm served it yet.
    """
    from shoal.executor.load import holds_published

    chosen = choose_format("auto", model.dtype, kernels=kernels_built(), published=holds_published(model))
    return {
        "name": model.name,
        "path": str(model.path),
        "digest": model.digest,
        "blocks": model.shape.n_blocks,
        "hidden_size": model.shape.hidden_size,
        "context": model.shape.context,
        "vocab_size": model.shape.vocab_size,
        "size": model.size,
        "dtype": model.dtype,
        "tower": _tower_bytes(model),
        "format": chosen.format,
        "format_why": chosen.why,
        "source": model.source,
        "end_tokens": sorted(model.end_tokens),
        "sampling": {
            key: value for key, value in dataclasses.asdict(model.sampling).items() if value is not None
        },
    }


def _tower_bytes(model: LocalModel) -> int | None:
    """Of what looks at images; ``None`` where the files are not there any more: all else is known without."""
    from shoal.errors import ModelError
    from shoal.models.checkpoint.checkpoint import tower_bytes

    try:
        return tower_bytes(model.path)
    except ModelError:
        return None


def graph_fields(graph: LocalGraph) -> dict[str, Any]:
    """An imported graph as ``--json`` shows it."""
    from shoal.models.graph.manifest import sizes_text

    manifest = graph.manifest

    def described(places: Sequence[int]) -> list[str]:
        values = [manifest.values[place] for place in places]
        return [f"{value.name} {value.dtype} {sizes_text(value.shape or ())}" for value in values]

    return {
        "name": graph.name,
        "kind": "graph",
        "path": str(graph.folder),
        "digest": graph.digest,
        "segments": len(manifest.segments),
        "size": sum(weight.size for weight in manifest.weights),
        "inputs": described(manifest.inputs),
        "outputs": described(manifest.outputs),
        "runtime": manifest.runtime,
        "threads": manifest.threads,
        "encryptable": manifest.linear is not None,
    }


def adapter_fields(kept: KeptAdapter) -> dict[str, Any]:
    """An adapter that came from peers as ``--json`` shows it."""
    return {
        "name": kept.title,
        "kind": "adapter",
        "path": str(kept.folder),
        "digest": kept.digest,
        "base": kept.base,
        "size": kept.size,
    }


def models_table(models: Sequence[dict[str, Any]]) -> Table:
    """One line a model; those that are not here say how to get them."""
    from rich.table import Table
    from rich.text import Text

    rows = Table(box=None, pad_edge=False)
    rows.add_column("name", overflow="fold")
    for heading in ("blocks", "context", "size"):
        rows.add_column(heading, justify="right")
    rows.add_column("where", overflow="fold")
    for fields in models:
        cells = ["-", "-", f"{fields.get('download', 0) / 1e6:.0f} MB", f"shoal models pull {fields['name']}"]
        if fields["here"]:
            cells = [
                str(fields.get("blocks", fields.get("segments", "-"))),
                str(fields.get("context", "-")),
                f"{fields['size'] / 1e6:.0f} MB",
                fields["path"],
            ]
        rows.add_row(Text(printable(fields["name"])), *(Text(printable(cell)) for cell in cells))
    return rows


def _store() -> ModelStore:
    from shoal.models.store.store import ModelStore

    return ModelStore(options.settings().paths.models)


def _adapters() -> KeptAdapters:
    from shoal.models.adapters.kept import KeptAdapters

    return KeptAdapters(options.settings().paths.adapters)


def _graphs() -> GraphStore:
    from shoal.models.graph.graph_store import GraphStore

    return GraphStore(options.settings().paths.graphs)
