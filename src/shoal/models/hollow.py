"""A model that is hollow but for one part: the way to build any span of any causal LM.

The model's own class builds itself from its whole config on the meta device, where weights take no memory,
so every block is what it would be in the whole model: dense or sparse, sliding or full, scaled by its index.
Then all that does not belong to the part is taken out, and Hugging Face's own loader fills what is left. It
is offered every tensor of the checkpoint and reads those that it finds a place for.

A truncated config would do for most families, but says something wrong to those that list their special
blocks by index (Qwen3-MoE's ``mlp_only_layers``), by period (Jamba, Llama 4) or that compute with a block's
index or with the number of blocks (GPT-2's ``scale_attn_by_inverse_layer_idx``, MiniCPM).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, cast

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PretrainedConfig, PreTrainedModel

from shoal.errors import BadWeights, UnsupportedModel
from shoal.models.checkpoint import Checkpoint
from shoal.models.standins import Door, Passthrough
from shoal.types import DType, Span

TORCH_DTYPE: dict[DType, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# What transformers raises on configs and weights that it cannot make sense of.
REFUSED = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
    AssertionError,
    StrictDataclassError,
)


@dataclass(frozen=True, slots=True)
class Blocks:
    """Where a model keeps its blocks: ``path`` leads from the model to the owner of the list ``name``."""

    path: tuple[nn.Module, ...]
    name: str

    @property
    def modules(self) -> nn.ModuleList:
        return cast(nn.ModuleList, getattr(self.path[-1], self.name))

    def replace(self, blocks: nn.ModuleList) -> None:
        setattr(self.path[-1], self.name, blocks)


def read_model_config(checkpoint: Checkpoint) -> PretrainedConfig:
    """The checkpoint's config as transformers understands it; no code that comes with a model is ever run.

    Raises:
        UnsupportedModel: transformers does not know the type.
        BadWeights: the config is not one that the type accepts.
    """
    kind = str(checkpoint.config["model_type"])
    if kind not in transformers.CONFIG_MAPPING:
        needs_code = "auto_map" in checkpoint.config
        raise UnsupportedModel(
            f"{checkpoint.folder}: transformers knows no models of type {kind[:80]!r}"
            + (", and the code that this one brings (auto_map) is never run" if needs_code else ""),
            check="whether a version of the model exists that transformers supports itself",
        )
    try:
        return AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False, local_files_only=True)
    except REFUSED as error:
        raise BadWeights(
            f"{checkpoint.folder / 'config.json'}: transformers refuses it ({first_line(error)})",
            check="fetch the file again",
        ) from error


def causal_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The class that ``AutoModelForCausalLM`` would take.

    Raises:
        UnsupportedModel: this is no causal LM, or its config is nested (images, sound, encoder and decoder).
    """
    if config.get_text_config(decoder=True) is not config or config.is_encoder_decoder:
        raise UnsupportedModel(
            f"a {config.model_type} model does more than text (its config is nested), which is not supported",
            check="whether its text part exists as a model of its own",
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsupportedModel(f"a {config.model_type} model does not generate text")
    found = cast(object, MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])
    return cast(type[PreTrainedModel], found[0] if isinstance(found, tuple) else found)


def find_blocks(model: nn.Module, n_blocks: int) -> Blocks:
    """The shallowest list of ``n_blocks`` modules.

    Raises:
        UnsupportedModel: there is none, or more than one at the same depth.
    """
    level: list[tuple[nn.Module, ...]] = [(model,)]
    while level:
        found = [
            Blocks(path, name)
            for path in level
            for name, child in path[-1].named_children()
            if isinstance(child, nn.ModuleList) and len(child) == n_blocks
        ]
        if len(found) == 1:
            return found[0]
        if found:
            raise UnsupportedModel(f"{type(model).__name__} has more than one list of {n_blocks} blocks")
        level = [(*path, child) for path in level for child in path[-1].children()]
    raise UnsupportedModel(f"{type(model).__name__} has no list of {n_blocks} blocks")


def load_hollow(
    checkpoint: Checkpoint, config: PretrainedConfig, dtype: DType, keep: Span | None
) -> tuple[PreTrainedModel, Blocks]:
    """The model with the weights of blocks ``keep`` alone, or of everything but blocks when ``keep`` is None.

    The kept blocks stay in their list, in order; without any the list holds up to two doors.

    Raises:
        UnsupportedModel: see :func:`causal_class` and :func:`find_blocks`.
        BadWeights: tensors that the part needs are missing or have another shape.
    """
    n_blocks = int(config.num_hidden_layers)
    located: list[Blocks] = []
    doors: list[Door] = []

    def hollow(model: PreTrainedModel) -> None:
        blocks = find_blocks(model, n_blocks)
        kept = nn.ModuleList()
        if keep is None:
            doors.extend(Door(block) for block in list(blocks.modules)[:2])
        else:
            for index in range(keep.start, keep.end):
                kept.add_module(str(index), blocks.modules[index])  # as the checkpoint calls it
            _take_out_weights(blocks)
        blocks.replace(kept)
        _keep_ties(model)
        located.append(blocks)

    model = _load(_subclass(causal_class(config), hollow), checkpoint, config, dtype)
    (blocks,) = located
    blocks.replace(nn.ModuleList(doors if keep is None else list(blocks.modules)))
    first = keep.start if keep else 0
    narrow_config(blocks, n_blocks, first, first + len(blocks.modules))
    return model, blocks


def _subclass(
    cls: type[PreTrainedModel], prepare: Callable[[PreTrainedModel], None]
) -> type[PreTrainedModel]:
    """``cls`` with ``prepare`` run at the end of its ``__init__``, when nothing is loaded yet."""

    def __init__(self: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        cls.__init__(self, *args, **kwargs)
        prepare(self)

    # The loader looks its conversions up by the class's name.
    return cast(
        type[PreTrainedModel],
        type(cls.__name__, (cls,), {"__init__": __init__, "__module__": cls.__module__}),
    )


def _take_out_weights(blocks: Blocks) -> None:
    """Replace every module beside the way to the blocks that has weights of its own."""
    on_the_way = {*blocks.path, blocks.modules}
    for owner in blocks.path:
        for name, child in list(owner.named_children()):
            if child not in on_the_way and child.state_dict():
                setattr(owner, name, Passthrough())


def _keep_ties(model: PreTrainedModel) -> None:
    """Forget the ties of what was taken out.

    Raises:
        UnsupportedModel: a block shares its weights with one that is not in the span.
    """
    names = model.state_dict().keys()
    ties = cast(dict[str, str], model.all_tied_weights_keys)
    for one, other in ties.items():
        if (one in names) != (other in names):
            raise UnsupportedModel(
                f"{type(model).__name__} cannot be cut here: {one} is shared with {other}",
                check="a span that holds both blocks",
            )
    model.all_tied_weights_keys = {one: other for one, other in ties.items() if one in names}


def _load(
    cls: type[PreTrainedModel], checkpoint: Checkpoint, config: PretrainedConfig, dtype: DType
) -> PreTrainedModel:
    with ExitStack() as stack, quiet():
        slices = _slices(checkpoint, dtype, stack)
        try:
            model, info = cast(
                "tuple[PreTrainedModel, dict[str, Any]]",
                cls.from_pretrained(
                    None,
                    config=config,
                    state_dict=slices,
                    dtype=TORCH_DTYPE[dtype],
                    output_loading_info=True,
                ),
            )
        except REFUSED as error:
            raise BadWeights(
                f"{checkpoint.folder}: transformers cannot load it ({first_line(error)})",
                check="whether the config and the weights belong together",
            ) from error
    if missing := sorted(info["missing_keys"]):
        raise BadWeights(
            f"{checkpoint.folder}: {len(missing)} tensors are missing, {missing[0]} among them",
            check="whether the model was fetched completely",
        )
    return model.eval()


def _slices(checkpoint: Checkpoint, dtype: DType, stack: ExitStack) -> dict[str, Any]:
    """Every tensor of a checkpoint, not read yet.

    Those that are kept as stored are mapped, as transformers does: they stay pages of the file, at the same
    alignment, on which the last bit of a matrix product can depend. Those that are converted are read, since
    mapped pages would stay in memory beside what they are converted to.
    """
    stored = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[dtype]
    opened: dict[tuple[Path, str], Any] = {}
    slices: dict[str, Any] = {}
    for name, entry in checkpoint.tensors.items():
        backend = "mmap" if entry.dtype == stored else "pread"
        if (entry.file, backend) not in opened:
            handle = safe_open(entry.file, framework="pt", backend=backend)
            opened[entry.file, backend] = stack.enter_context(handle)
        slices[name] = opened[entry.file, backend].get_slice(name)
    return slices


def narrow_config(blocks: Blocks, n_blocks: int, start: int, end: int) -> None:
    """Tell the loop over the blocks, and only it, that there are blocks ``[start, end)`` and no others."""
    for owner in blocks.path:
        config = copy.deepcopy(cast(PretrainedConfig, owner.config))
        cls = type(config)
        # Some families compute their lists (``layer_types`` from a period): those become constants.
        computed = {
            name: value[start:end]
            for name in set(dir(cls)) - set(dir(PretrainedConfig))
            if isinstance(getattr(cls, name), property)
            and _is_per_block(value := getattr(config, name, None), n_blocks)
        }
        config.num_hidden_layers = end - start
        for target in (config, owner):
            for name, value in list(vars(target).items()):
                if _is_per_block(value, n_blocks):
                    setattr(target, name, value[start:end])
        config.__class__ = type(cls.__name__, (cls,), computed)
        setattr(owner, "config", config)  # noqa: B010 - torch declares every attribute a module


def _is_per_block(value: object, n_blocks: int) -> TypeGuard[Sequence[object]]:
    return isinstance(value, (list, tuple)) and len(cast("list[object]", value)) == n_blocks


@contextmanager
def quiet() -> Generator[None]:
    """No progress bars or load reports of transformers: ours are drawn by the CLI."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def first_line(error: Exception) -> str:
    """An error's first line, short enough for a message."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
