"""How text is cut before byte pairs are merged, by what GGUF calls it (``tokenizer.ggml.pre``).

The expressions are those of the models' own ``tokenizer.json``.
"""

from __future__ import annotations

from tokenizers import Regex, pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = (
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"
)
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"
)
SPLITS = {
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "dbrx", "smaug-bpe"), LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), QWEN2),
    "tekken": TEKKEN,
    **dict.fromkeys(("gpt-4o", "llama4"), GPT4O),
}
"""Kinds that are one expression."""
COMPOSED = frozenset({"qwen2", "deepseek-r1-qwen", "megrez"})
"""Kinds before which a text is put into Unicode's normal form C: transformers' Qwen2 does so in any case."""
GPT2 = frozenset({"gpt-2", "olmo", "mpt", "jais"})
"""Kinds that are cut as GPT-2 does."""
DIGITS = frozenset({"smollm", "refact", "starcoder", "codeshell", "exaone", "minerva-7b"})
"""Kinds whose digits are cut off first, each by itself, as llama.cpp does it (SmolLM, Granite, StarCoder).
Transformers' conversion of GGUF files cuts them as GPT-2 does, against the models' own tokenizers."""


def pre_tokenizer(kind: str) -> PreTokenizer | None:
    """How text is cut, with its bytes spelled as GPT-2 spells them; None when the kind is not known."""
    if kind in GPT2:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind in DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    if kind in SPLITS:
        split = pre_tokenizers.Split(Regex(SPLITS[kind]), behavior="isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([split, level])
    return None
