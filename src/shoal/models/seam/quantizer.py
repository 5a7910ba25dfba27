"""The loader's door for quantisers: it then hands over one tensor at a time and keeps no copy.

Relied on: a config registered under a method's name brings its quantiser, which is called before and after
loading; of each tensor it is asked ``param_needs_quantization``, and what ``get_quantize_ops`` gives is
called with ``{name: tensor}``, ``model`` and ``missing_keys``; what it does not return, the loader does not
load.
"""

from __future__ import annotations

from shoal.models.seam.contract import expect_arguments, expect_members, relied_on

with relied_on("the door for quantisers"):
    from transformers.core_model_loading import ConversionOps
    from transformers.quantizers.auto import register_quantization_config, register_quantizer
    from transformers.quantizers.base import HfQuantizer

    expect_members(
        HfQuantizer,
        "_process_model_before_weight_loading",
        "_process_model_after_weight_loading",
        "is_serializable",
        "is_trainable",
    )
    expect_arguments(HfQuantizer.__init__, "quantization_config")
    expect_arguments(HfQuantizer.param_needs_quantization, "model", "param_name")
    expect_arguments(HfQuantizer.update_attn_implementation, "config")
    expect_arguments(HfQuantizer.get_quantize_ops)
    expect_arguments(ConversionOps.convert, "input_dict", "source_patterns", "target_patterns")

__all__ = [
    "ConversionOps",
    "HfQuantizer",
    "register_quantization_config",
    "register_quantizer",
]
