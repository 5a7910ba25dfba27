"""What Shoal takes from the top of transformers, from where the library defines it. For pyright alone.

The library's own ``__init__`` names every model that it has: to read them takes pyright twenty seconds of a
minute. The types here are the library's own. A name that is not here is an error: add it.
"""

from types import ModuleType

from transformers.cache_utils import DynamicCache as DynamicCache
from transformers.configuration_utils import PretrainedConfig as PretrainedConfig
from transformers.generation.configuration_utils import GenerationConfig as GenerationConfig
from transformers.modeling_utils import PreTrainedModel as PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING as CONFIG_MAPPING
from transformers.models.auto.configuration_auto import AutoConfig as AutoConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING as MODEL_FOR_CAUSAL_LM_MAPPING,
)
from transformers.models.auto.modeling_auto import MODEL_MAPPING as MODEL_MAPPING
from transformers.models.auto.modeling_auto import AutoModel as AutoModel
from transformers.models.auto.modeling_auto import AutoModelForCausalLM as AutoModelForCausalLM
from transformers.models.auto.modeling_auto import (
    AutoModelForImageTextToText as AutoModelForImageTextToText,
)
from transformers.models.auto.modeling_auto import AutoModelForMaskedLM as AutoModelForMaskedLM
from transformers.models.auto.modeling_auto import AutoModelForSeq2SeqLM as AutoModelForSeq2SeqLM
from transformers.models.auto.modeling_auto import AutoModelForSpeechSeq2Seq as AutoModelForSpeechSeq2Seq
from transformers.models.auto.tokenization_auto import AutoTokenizer as AutoTokenizer
from transformers.models.bamba.configuration_bamba import BambaConfig as BambaConfig
from transformers.models.bert.configuration_bert import BertConfig as BertConfig
from transformers.models.bloom.configuration_bloom import BloomConfig as BloomConfig
from transformers.models.camembert.configuration_camembert import CamembertConfig as CamembertConfig
from transformers.models.clip.configuration_clip import CLIPVisionConfig as CLIPVisionConfig
from transformers.models.cohere.configuration_cohere import CohereConfig as CohereConfig
from transformers.models.cohere2.configuration_cohere2 import Cohere2Config as Cohere2Config
from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config as DeepseekV3Config
from transformers.models.distilbert.configuration_distilbert import DistilBertConfig as DistilBertConfig
from transformers.models.electra.configuration_electra import ElectraConfig as ElectraConfig
from transformers.models.ernie4_5_moe.configuration_ernie4_5_moe import (
    Ernie4_5_MoeConfig as Ernie4_5_MoeConfig,
)
from transformers.models.exaone4.configuration_exaone4 import Exaone4Config as Exaone4Config
from transformers.models.falcon.configuration_falcon import FalconConfig as FalconConfig
from transformers.models.gemma.configuration_gemma import GemmaConfig as GemmaConfig
from transformers.models.gemma2.configuration_gemma2 import Gemma2Config as Gemma2Config
from transformers.models.gemma3.configuration_gemma3 import Gemma3Config as Gemma3Config
from transformers.models.gemma3.configuration_gemma3 import Gemma3TextConfig as Gemma3TextConfig
from transformers.models.gemma3n.configuration_gemma3n import Gemma3nTextConfig as Gemma3nTextConfig
from transformers.models.glm4.configuration_glm4 import Glm4Config as Glm4Config
from transformers.models.gpt2.configuration_gpt2 import GPT2Config as GPT2Config
from transformers.models.gpt_neo.configuration_gpt_neo import GPTNeoConfig as GPTNeoConfig
from transformers.models.gpt_neox.configuration_gpt_neox import GPTNeoXConfig as GPTNeoXConfig
from transformers.models.gpt_oss.configuration_gpt_oss import GptOssConfig as GptOssConfig
from transformers.models.gptj.configuration_gptj import GPTJConfig as GPTJConfig
from transformers.models.granite.configuration_granite import GraniteConfig as GraniteConfig
from transformers.models.hyperclovax.configuration_hyperclovax import HyperCLOVAXConfig as HyperCLOVAXConfig
from transformers.models.jamba.configuration_jamba import JambaConfig as JambaConfig
from transformers.models.lfm2.configuration_lfm2 import Lfm2Config as Lfm2Config
from transformers.models.llama.configuration_llama import LlamaConfig as LlamaConfig
from transformers.models.llama.modeling_llama import LlamaModel as LlamaModel
from transformers.models.llama4.configuration_llama4 import Llama4TextConfig as Llama4TextConfig
from transformers.models.llava.configuration_llava import LlavaConfig as LlavaConfig
from transformers.models.mamba.configuration_mamba import MambaConfig as MambaConfig
from transformers.models.mamba2.configuration_mamba2 import Mamba2Config as Mamba2Config
from transformers.models.mistral.configuration_mistral import MistralConfig as MistralConfig
from transformers.models.mixtral.configuration_mixtral import MixtralConfig as MixtralConfig
from transformers.models.modernbert.configuration_modernbert import ModernBertConfig as ModernBertConfig
from transformers.models.mpnet.configuration_mpnet import MPNetConfig as MPNetConfig
from transformers.models.mpt.configuration_mpt import MptConfig as MptConfig
from transformers.models.mt5.configuration_mt5 import MT5Config as MT5Config
from transformers.models.nanochat.configuration_nanochat import NanoChatConfig as NanoChatConfig
from transformers.models.nemotron.configuration_nemotron import NemotronConfig as NemotronConfig
from transformers.models.olmo.configuration_olmo import OlmoConfig as OlmoConfig
from transformers.models.olmo2.configuration_olmo2 import Olmo2Config as Olmo2Config
from transformers.models.olmoe.configuration_olmoe import OlmoeConfig as OlmoeConfig
from transformers.models.opt.configuration_opt import OPTConfig as OPTConfig
from transformers.models.phi.configuration_phi import PhiConfig as PhiConfig
from transformers.models.phi3.configuration_phi3 import Phi3Config as Phi3Config
from transformers.models.phimoe.configuration_phimoe import PhimoeConfig as PhimoeConfig
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config as Qwen2Config
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig as Qwen2_5_VLConfig
from transformers.models.qwen2_moe.configuration_qwen2_moe import Qwen2MoeConfig as Qwen2MoeConfig
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLConfig as Qwen2VLConfig
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config as Qwen3Config
from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig as Qwen3MoeConfig
from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig as Qwen3NextConfig
from transformers.models.recurrent_gemma.configuration_recurrent_gemma import (
    RecurrentGemmaConfig as RecurrentGemmaConfig,
)
from transformers.models.roberta.configuration_roberta import RobertaConfig as RobertaConfig
from transformers.models.siglip.configuration_siglip import SiglipVisionConfig as SiglipVisionConfig
from transformers.models.smollm3.configuration_smollm3 import SmolLM3Config as SmolLM3Config
from transformers.models.stablelm.configuration_stablelm import StableLmConfig as StableLmConfig
from transformers.models.starcoder2.configuration_starcoder2 import Starcoder2Config as Starcoder2Config
from transformers.models.t5.configuration_t5 import T5Config as T5Config
from transformers.models.whisper.configuration_whisper import WhisperConfig as WhisperConfig
from transformers.models.xlm_roberta.configuration_xlm_roberta import XLMRobertaConfig as XLMRobertaConfig
from transformers.models.zamba2.configuration_zamba2 import Zamba2Config as Zamba2Config
from transformers.tokenization_utils_base import PreTrainedTokenizerBase as PreTrainedTokenizerBase
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast as PreTrainedTokenizerFast

modeling_gguf_pytorch_utils: ModuleType
modeling_rope_utils: ModuleType
