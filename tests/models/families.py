"""Small tokenizers and chat templates as each family of models has them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from shoal.models.text.codec import TextCodec
from shoal.models.text.tokenizer.fast import FastTokenizer
from shoal.models.text.tokenizer.guard import GuardedTokenizer

TEMPLATES = Path(__file__).with_name("templates")
MERGES = "h e|l l|he ll|e n|en d|i n|t h|th e|Ġ the|Ġ a|i m|t o|o l|to ol|Ċ Ċ|Ġ Ġ|a s|s t|u s|e r|us er"
"""Joined so: what is on both sides of a control word may be joined to it where that is text."""


@dataclass(frozen=True)
class Family:
    """How one family writes its conversations."""

    name: str
    special: tuple[str, ...]
    """Tokens that decoding leaves out."""
    words: tuple[str, ...] = ()
    """Tokens that mean something and are text to the tokenizer."""
    named: dict[str, str] = field(default_factory=dict[str, str], hash=False)
    sentencepiece: bool = False

    @property
    def template(self) -> str:
        return (TEMPLATES / f"{self.name}.jinja").read_text()

    def tokenizer(self) -> Tokenizer:
        made = _sentencepiece() if self.sentencepiece else _byte_level()
        made.add_special_tokens([AddedToken(word, normalized=False) for word in self.special])
        made.add_tokens([AddedToken(word, normalized=False) for word in self.words])
        return made

    def codec(self) -> TextCodec:
        fast = FastTokenizer(self.tokenizer(), self.named)
        return TextCodec(fast, {"default": self.template}, GuardedTokenizer(fast, self.template))


def _byte_level() -> Tokenizer:
    pairs = [(one.split(" ")[0], one.split(" ")[1]) for one in MERGES.split("|")]
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in pairs)]
    vocab = {symbol: i for i, symbol in enumerate(dict.fromkeys(symbols))}
    made = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def _sentencepiece() -> Tokenizer:
    """As Mistral's: blanks are letters, and what has no token is bytes."""
    letters = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789<>|[]{}/_\"':,.!?\n"
    words = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), *letters, "he", "ll", "hell", "▁a", "th", "▁th"]
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("▁", "a"), ("t", "h"), ("▁", "th")]
    vocab = {word: i for i, word in enumerate(dict.fromkeys(words))}
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    return made


_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
QWEN3 = Family("qwen3", _CHATML, _TAGS, {"eos_token": "<|im_end|>"})
QWEN3_CODER = Family("qwen3_coder", _CHATML, _TAGS, {"eos_token": "<|im_end|>"})
LLAMA3 = Family(
    "llama3",
    (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|python_tag|>",
    ),
    named={"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
)
MISTRAL = Family(
    "mistral",
    (
        *("<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
        *("[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
    ),
    named={"bos_token": "<s>", "eos_token": "</s>"},
    sentencepiece=True,
)
GPT_OSS = Family(
    "gpt_oss",
    (
        *("<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>"),
        *("<|start|>", "<|end|>", "<|message|>", "<|call|>"),
    ),
    named={"eos_token": "<|return|>"},
)
DEEPSEEK = Family(
    "deepseek",
    ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    (
        *("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "<｜tool▁sep｜>"),
        *("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"),
        *("<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"),
    ),
    {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"},
)
GLM = Family(
    "glm",
    ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    (*_TAGS, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "/nothink"),
    {"eos_token": "<|endoftext|>"},
)
FAMILIES = (QWEN3, QWEN3_CODER, LLAMA3, MISTRAL, GPT_OSS, DEEPSEEK, GLM)
