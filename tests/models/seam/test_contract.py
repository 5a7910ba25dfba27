"""A transformers that does not fit is told by what has changed, before a model is loaded."""

from __future__ import annotations

import inspect
import pkgutil
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    cache_utils,
    modeling_gguf_pytorch_utils,
    modeling_rope_utils,
    pytorch_utils,
)
from transformers.core_model_loading import ConversionOps
from transformers.integrations import moe
from transformers.models.llava.modeling_llava import LlavaModel
from transformers.quantizers.base import HfQuantizer
from transformers.utils import logging

from shoal.cli.doctor import checks
from shoal.config import Settings
from shoal.errors import IncompatibleLibrary, UnsupportedModel
from shoal.models import seam
from shoal.models.build.load import load_ends_module, load_span_module
from shoal.models.seam.contract import check_everything, expect_arguments, expect_members, relied_on
from shoal.models.seam.versions import SUPPORTED
from shoal.models.store.local_model import LocalModel
from shoal.types import Span

from .conftest import import_again

MODULES = sorted(module.name for module in pkgutil.iter_modules(seam.__path__))
OWN = {"contract", "versions"}
"""These say nothing of transformers' inside."""
GONE: dict[str, tuple[Any, str]] = {
    "cache": (cache_utils, "LinearAttentionCacheLayerMixin"),
    "config": (PretrainedConfig, "get_text_config"),
    "experts": (moe, "use_experts_implementation"),
    "gguf": (modeling_gguf_pytorch_utils, "tqdm"),
    "layers": (pytorch_utils, "Conv1D"),
    "loading": (PreTrainedModel, "prepare_distribute_model"),
    "logging": (logging, "is_progress_bar_enabled"),
    "model": (PreTrainedModel, "base_model"),
    "quantizer": (HfQuantizer, "get_quantize_ops"),
    "rotary": (modeling_rope_utils, "dynamic_rope_update"),
    "seq2seq": (PreTrainedModel, "get_encoder"),
    "split": (PreTrainedModel, "tp_plan"),
    "tokenizer": (PreTrainedTokenizerBase, "convert_ids_to_tokens"),
    "vision": (LlavaModel, "get_image_features"),
}
"""For each module of the seam something that it relies on."""


def owner_of(cls: Any, name: str) -> Any:
    """The class that defines a member, which may be inherited."""
    return next((base for base in getattr(cls, "__mro__", ()) if name in vars(base)), cls)


def test_all_that_is_relied_on_is_here() -> None:
    assert check_everything() == transformers.__version__


def test_every_module_is_listed_says_what_it_relies_on_and_has_a_contract_test() -> None:
    listed = set(re.findall(r"^``(\w+)``", seam.__doc__ or "", re.MULTILINE))
    assert listed == set(MODULES)
    assert set(GONE) == set(MODULES) - OWN
    for name in set(MODULES) - OWN:
        module = import_again(name)
        assert "Relied on: " in (module.__doc__ or ""), name
    tests = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")}
    assert tests == set(MODULES)


@pytest.mark.parametrize("name", sorted(GONE))
def test_something_that_is_gone_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, member = GONE[name]
    monkeypatch.delattr(owner_of(owner, member), member)
    with pytest.raises(IncompatibleLibrary, match=member) as caught:
        import_again(name)
    version = transformers.__version__
    assert f"transformers {version}" in caught.value.message and SUPPORTED in caught.value.message
    assert caught.value.next_command == f"pip install 'transformers{SUPPORTED},!={version}'"


def test_an_argument_with_another_name_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def crop(self: object, count: int) -> None: ...

    def convert(self: object, tensors: object, source_patterns: object, target_patterns: object) -> None: ...

    monkeypatch.setattr(cache_utils.DynamicLayer, "crop", crop)
    with pytest.raises(
        IncompatibleLibrary, match=r"cache classes: .*crop takes no tokens_to_remove, but self, count"
    ):
        import_again("cache")
    monkeypatch.setattr(ConversionOps, "convert", convert)
    with pytest.raises(
        IncompatibleLibrary, match=r"quantisers: .*convert takes no input_dict, but self, tensors"
    ):
        import_again("quantizer")


def test_the_doctor_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.run("transformers", Settings()).verdict == "ok"
    monkeypatch.delattr(cache_utils, "DynamicLayer")
    monkeypatch.delitem(sys.modules, f"{seam.__name__}.cache")
    found = checks.run("transformers", Settings())
    assert found.verdict == "fail" and "DynamicLayer" in found.detail and "!=" in found.fix


def forward_with(name: str) -> Callable[..., Any]:
    """The forward of a base model that takes its cache by another name, as in 5.24 it took one."""

    def forward(self: object, **kwargs: object) -> None:
        raise AssertionError("it was run")

    names = ("self", "input_ids", "position_ids", "inputs_embeds", "use_cache", name)
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    forward.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])
    return forward


def test_a_forward_that_takes_the_cache_by_another_name_is_told_as_that(
    local: Callable[[str], LocalModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it was with 5.24, and every model was then said to be one that cannot be split."""
    monkeypatch.setattr(transformers.LlamaModel, "forward", forward_with("kv_store"))
    monkeypatch.setattr(transformers.GPT2Model, "forward", forward_with("kv_store"))
    told = r"LlamaModel\.forward takes no cache or .*kv_store"
    for family in ("llama", "gpt2"):
        for load in (load_ends_module, partial(load_span_module, span=Span(0, 2))):
            with pytest.raises(IncompatibleLibrary, match=told) as caught:
                load(local(family))
            assert "cannot be split" not in caught.value.message


def test_one_family_alone_that_takes_none_is_refused_as_a_model(
    local: Callable[[str], LocalModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers.GPT2Model, "forward", forward_with("state"))
    with pytest.raises(UnsupportedModel, match=r"GPT2LMHeadModel cannot .* its forward takes no cache"):
        load_span_module(local("gpt2"), Span(0, 2))
    load_span_module(local("llama"), Span(0, 2))


def test_an_error_of_another_kind_is_not_taken_for_a_change() -> None:
    with pytest.raises(KeyError), relied_on("nothing"):
        raise KeyError("ours")
    with pytest.raises(IncompatibleLibrary, match="nothing: str has no shout"), relied_on("nothing"):
        expect_members(str, "upper", "shout")
    with pytest.raises(IncompatibleLibrary, match="takes no loud, but self, sep, maxsplit"), relied_on("it"):
        expect_arguments(str.split, "sep", "loud")
