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

from torch import nn

from shoal.errors import BadWeights, UnsupportedModel
from shoal.models.build.blocks import Blocks, find_blocks
from shoal.models.build.loader import REFUSED, first_line, load_weights
from shoal.models.build.placeholders import Door, Passthrough
from shoal.models.build.tensor_split import check_split
from shoal.models.checkpoint.checkpoint import Checkpoint, plain_config
from shoal.models.checkpoint.encoder_decoders import ENCODER_DECODERS
from shoal.models.checkpoint.encoders import ENCODERS, POSITION_BIAS
from shoal.models.seam.config import CONFIG_MAPPING, AutoConfig, PretrainedConfig
from shoal.models.seam.loading import QuantizationConfigMixin, prepared_class, set_ties, ties
from shoal.models.seam.model import PreTrainedModel, causal_lm_class, check_takes_cache, headless_class
from shoal.models.seam.split import keep_plan, settle
from shoal.models.seam.versions import check_version
from shoal.types import DType, Span


def read_model_config(checkpoint: Checkpoint) -> PretrainedConfig:
    """The checkpoint's config as transformers understands it; no code that comes with a model is ever run.

    Raises:
        UnsupportedModel: transformers does not know the type.
        BadWeights: the config is not one that the type accepts.
        IncompatibleLibrary: this transformers is not one that we support.
    """
    check_version()
    kind = str(checkpoint.config["model_type"])
    if kind not in CONFIG_MAPPING:
        needs_code = "auto_map" in checkpoint.config
        raise UnsupportedModel(
            f"{checkpoint.folder}: transformers knows no models of type {kind[:80]!r}"
            + (", and the code that this one brings (auto_map) is never run" if needs_code else ""),
            check="use a version of the model that transformers supports without remote code",
        )
    try:
        with plain_config(checkpoint) as folder:
            return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (*REFUSED, OSError) as error:
        raise BadWeights(
            f"{checkpoint.folder / 'config.json'}: transformers refuses it ({first_line(error)})",
            check="fetch the file again",
        ) from error


def encodes(config: PretrainedConfig) -> bool:
    """Whether a config is of an encoder; ``is_encoder`` says the same of a file."""
    return config.model_type in ENCODERS and not getattr(config, "is_decoder", False)


def model_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The class of which spans are made: a causal LM's, or an encoder's without any head.

    Raises:
        UnsupportedModel: see :func:`causal_class`.
    """
    found = headless_class(config) if encodes(config) else None
    return found or causal_class(config)


def causal_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The class that ``AutoModelForCausalLM`` would take.

    Raises:
        UnsupportedModel: this is no causal LM, has an encoder before a decoder, or its config is nested
            (images, sound).
    """
    if encodes(config):
        raise UnsupportedModel(f"a {config.model_type} model is an encoder: it gives vectors and no text")
    if config.is_encoder_decoder:
        raise UnsupportedModel(
            f"a {config.model_type} model has an encoder and a decoder, and is no causal language model",
            check=f"take another model, or serve and use it, if it is one of {', '.join(ENCODER_DECODERS)}",
        )
    if config.get_text_config(decoder=True) is not config:
        raise UnsupportedModel(
            f"a {config.model_type} model does more than text (its config is nested), which is not supported",
            check="use the text part of the model, if it is published by itself",
        )
    found = causal_lm_class(config)
    if found is None:
        raise UnsupportedModel(f"a {config.model_type} model does not generate text")
    return found


def load_hollow(
    checkpoint: Checkpoint,
    config: PretrainedConfig,
    dtype: DType,
    keep: Span | None,
    packing: QuantizationConfigMixin | None = None,
    split: int = 1,
) -> tuple[PreTrainedModel, Blocks]:
    """The model with the weights of blocks ``keep`` alone, or of everything but blocks when ``keep`` is None.

    The kept blocks stay in their list, in order; without any the list holds up to two doors. ``packing``
    and ``split``: see :func:`load_weights`.

    Raises:
        UsageError: the model cannot be split so.
        UnsupportedModel: see :func:`model_class` and :func:`find_blocks`.
        BadWeights: tensors that the part needs are missing or have another shape.
    """
    if split > 1:
        check_split(config, split)
    n_blocks = int(config.num_hidden_layers)
    located: list[Blocks] = []
    doors: list[Door] = []

    def hollow(model: PreTrainedModel) -> None:
        if encodes(config):
            _drop_pooler(model)
        else:
            check_takes_cache(model)
        blocks = find_blocks(model, n_blocks)
        kept = nn.ModuleList()
        if keep is None:
            doors.extend(Door(block) for block in list(blocks.modules)[:2])
        else:
            for index in range(keep.start, keep.end):
                kept.add_module(str(index), blocks.modules[index])  # as the checkpoint calls it
            _take_out_weights(blocks)
        setattr(blocks.path[-1], blocks.name, kept)
        keep_ties(model)
        if split > 1:
            keep_plan(model, _name_of(model, kept))
        located.append(blocks)

    cls = prepared_class(model_class(config), hollow)
    model = load_weights(cls, checkpoint, config, dtype, packing, split)
    if split > 1:
        settle(model)
    (blocks,) = located
    first = keep.start if keep else 0
    blocks.replace(nn.ModuleList(doors if keep is None else list(blocks.modules)), first)
    return model, blocks


def _take_out_weights(blocks: Blocks) -> None:
    """Replace every module beside the way to the blocks that has weights of its own."""
    on_the_way = {*blocks.path, blocks.modules}
    for owner in blocks.path:
        for name, child in list(owner.named_children()):
            if child not in on_the_way and name != POSITION_BIAS and child.state_dict():
                setattr(owner, name, Passthrough())


def _drop_pooler(model: PreTrainedModel) -> None:
    """Take out the layer behind an encoder's blocks that only its classifiers use; many files lack it."""
    if getattr(model, "pooler", None) is not None:
        setattr(model, "pooler", None)  # noqa: B010


def _name_of(model: PreTrainedModel, wanted: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)


def keep_ties(model: PreTrainedModel) -> None:
    """Forget the ties of what was taken out.

    Raises:
        UnsupportedModel: a block shares its weights with one that is not in the span.
    """
    names = model.state_dict().keys()
    tied = ties(model)
    for one, other in tied.items():
        if (one in names) != (other in names):
            raise UnsupportedModel(
                f"{type(model).__name__} cannot be cut here: {one} is shared with {other}",
                check="choose a span that holds both blocks",
            )
    set_ties(model, {one: other for one, other in tied.items() if one in names})
