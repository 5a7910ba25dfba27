"""The tokenizer in a GGUF file as ``tokenizer.json`` and ``tokenizer_config.json``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import TokenType
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from shoal.models.gguf.fields import Fields, NotCovered
from shoal.models.gguf.header import bad
from shoal.models.gguf.pretokenizers import COMPOSED, pre_tokenizer
from shoal.models.gguf.splits import Gguf

SPACE = "\u2581"
"""What SentencePiece writes for a space."""
MAX_TOKEN = 512
MAX_VOCABULARY = 8 << 20
"""Characters of one token, and of all, from which merges are derived: each is cut at every place."""
NO_TOKENIZER = ("", "none", "no_vocab")
SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
"""By the name in ``tokenizer_config.json``, that in GGUF."""
Merges = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class GgufVocabulary:
    """What a file says of its tokens."""

    gguf: Gguf
    fields: Fields
    tokens: list[str]
    types: list[int]
    special: dict[str, str]
    """The special tokens by their names in ``tokenizer_config.json``."""

    @property
    def added(self) -> list[AddedToken]:
        """Tokens that are found in a text before anything else is."""
        kinds = {int(TokenType.CONTROL): True, int(TokenType.USER_DEFINED): False}
        by_text = {
            token: kinds[kind] for token, kind in zip(self.tokens, self.types, strict=False) if kind in kinds
        }
        by_text |= dict.fromkeys(self.special.values(), True)
        return [AddedToken(text, normalized=False, special=special) for text, special in by_text.items()]


def convert_tokenizer(gguf: Gguf, folder: Path, context: int) -> None:
    """Write both files into ``folder``; none for a model without a tokenizer.

    Raises:
        NotCovered: a kind of tokenizer, or of cutting text, that is not known here.
        BadWeights: tokens or merges that do not belong together.
    """
    fields = Fields(gguf)
    kind = fields.text("tokenizer.ggml.model")
    if kind in NO_TOKENIZER:
        return
    builder = _builder(fields.arch, kind)
    vocabulary = _vocabulary(gguf, fields)
    tokenizer = builder(vocabulary)
    added = vocabulary.added
    tokenizer.add_special_tokens([token for token in added if token.special])
    tokenizer.add_tokens([token for token in added if not token.special])
    ends = _add_ends(tokenizer, vocabulary, default_bos=kind == "llama")
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "TokenizersBackend",
        "backend": "tokenizers",
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        **ends,
        **vocabulary.special,
    }
    if (template := _chat_template(fields)) is not None:
        config["chat_template"] = template
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _builder(arch: str, kind: str) -> Callable[[GgufVocabulary], Tokenizer]:
    if kind == "gpt2":
        return _byte_level
    if kind == "llama":
        return {"gemma": _gemma, "gemma3": _gemma, "phi3": _phi3}.get(arch, _llama)
    raise NotCovered(f"a tokenizer of kind {kind[:80]!r}")


def _vocabulary(gguf: Gguf, fields: Fields) -> GgufVocabulary:
    tokens = fields.texts("tokenizer.ggml.tokens")
    if not tokens:
        raise bad(gguf.file, "its tokenizer has no tokens")
    special: dict[str, str] = {}
    for name, key in SPECIAL.items():
        number = fields.whole(f"tokenizer.ggml.{key}")
        if number is not None and number >= len(tokens):
            raise bad(gguf.file, f"{key} is {number}, and there are {len(tokens)} tokens")
        if number is not None:
            special[name] = tokens[number]
    types = [int(kind) for kind in fields.numbers("tokenizer.ggml.token_type")]
    return GgufVocabulary(gguf, fields, tokens, types, special)


def _byte_level(vocabulary: GgufVocabulary) -> Tokenizer:
    """As GPT-2: bytes are spelled as letters, and merged."""
    kind = vocabulary.fields.text("tokenizer.ggml.pre")
    cut = pre_tokenizer(kind)
    if cut is None:
        raise NotCovered(f"text that is cut as {kind[:80]!r}")
    letters = byte_letters()
    alphabet = set(letters.values())
    apart = {token.content for token in vocabulary.added}
    vocab = {
        token
        if token in apart or alphabet.issuperset(token)
        else "".join(letters[byte] for byte in token.encode()): number
        for number, token in enumerate(vocabulary.tokens)
    }
    merges = _stated_merges(vocabulary, vocab)
    tokenizer = Tokenizer(
        BPE(vocab=vocab, merges=merges, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False)
    )
    if kind in COMPOSED:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _llama(vocabulary: GgufVocabulary) -> Tokenizer:
    """As Llama 2: SentencePiece's byte pairs, with a space put before the text."""
    prefixed = vocabulary.fields.flag("tokenizer.ggml.add_space_prefix") is not False
    tokenizer = _sentencepiece(vocabulary, vocabulary.tokens, _scores(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement=SPACE, prepend_scheme="first" if prefixed else "never", split=False
    )
    steps: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefixed:
        steps.append(decoders.Strip(content=" ", left=1))
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _phi3(vocabulary: GgufVocabulary) -> Tokenizer:
    """As Llama 2, but the space is put before every part of a text between special tokens."""
    tokenizer = _llama(vocabulary)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.pre_tokenizer = None  # pyright: ignore[reportAttributeAccessIssue] - None takes it away
    return tokenizer


def _gemma(vocabulary: GgufVocabulary) -> Tokenizer:
    """SentencePiece's byte pairs without a space before the text. Earlier tokens were merged first."""
    tokens = [SPACE * len(t) if " " in t and not t.strip() else t for t in vocabulary.tokens]
    order = {token: -float(number) for number, token in enumerate(tokens)}
    tokenizer = _sentencepiece(vocabulary, tokens, order, unknown="<unk>")
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern=" ", behavior="merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def _sentencepiece(
    vocabulary: GgufVocabulary, tokens: list[str], scores: Mapping[str, float], unknown: str | None = None
) -> Tokenizer:
    vocab = {token: number for number, token in enumerate(tokens)}
    merges = _stated_merges(vocabulary, vocab) or _derived_merges(vocabulary, vocab, scores)
    return Tokenizer(BPE(vocab=vocab, merges=merges, fuse_unk=True, unk_token=unknown, byte_fallback=True))


def _scores(vocabulary: GgufVocabulary) -> dict[str, float]:
    scores = vocabulary.fields.numbers("tokenizer.ggml.scores")
    if len(scores) != len(vocabulary.tokens):
        if vocabulary.fields.texts("tokenizer.ggml.merges"):
            return {}
        raise bad(vocabulary.gguf.file, f"{len(scores)} scores for {len(vocabulary.tokens)} tokens")
    return dict(zip(vocabulary.tokens, scores, strict=True))


def _stated_merges(vocabulary: GgufVocabulary, vocab: Mapping[str, int]) -> Merges:
    merges: Merges = []
    for merge in vocabulary.fields.texts("tokenizer.ggml.merges"):
        left, _, right = merge.partition(" ")
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise bad(vocabulary.gguf.file, f"its tokenizer merges {merge[:40]!r}, and not all are tokens")
        merges.append((left, right))
    return merges


def _derived_merges(
    vocabulary: GgufVocabulary, vocab: Mapping[str, int], scores: Mapping[str, float]
) -> Merges:
    """The merges that a vocabulary implies: the better a token's score, the earlier it was merged.

    As transformers does it (``generate_merges``), ties included.
    """
    if max(map(len, vocab)) > MAX_TOKEN or sum(map(len, vocab)) > MAX_VOCABULARY:
        raise bad(vocabulary.gguf.file, f"its tokenizer has tokens longer than {MAX_TOKEN} characters")
    found: list[tuple[float, str, str]] = []
    for token, score in scores.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                found.append((score, left, right))
    found.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [(left, right) for _, left, right in found]


def _add_ends(tokenizer: Tokenizer, vocabulary: GgufVocabulary, *, default_bos: bool) -> dict[str, bool]:
    """What is put before and behind a text; returns it as ``tokenizer_config.json`` says it."""
    stated = {
        f"add_{end}_token": vocabulary.fields.flag(f"tokenizer.ggml.add_{end}_token")
        for end in ("bos", "eos")
    }
    if stated["add_bos_token"] is None and default_bos:
        stated["add_bos_token"] = True
    bos, eos = (
        vocabulary.special.get(f"{end}_token") if stated[f"add_{end}_token"] else None
        for end in ("bos", "eos")
    )
    single = [*([f"{bos}:0"] if bos else []), "$A:0", *([f"{eos}:0"] if eos else [])]
    pair = [*single, *([f"{bos}:1"] if bos else []), "$B:1", *([f"{eos}:1"] if eos else [])]
    numbers = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys((bos, eos)) if token]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=numbers)
    return {"add_bos_token": bos is not None, "add_eos_token": eos is not None}


def _chat_template(fields: Fields) -> str | list[dict[str, str]] | None:
    """The template; with others, for example for tools, the list of all."""
    prefix = "tokenizer.chat_template"
    named = {key.removeprefix(f"{prefix}."): fields.text(key) for key in fields.named(f"{prefix}.")}
    default = fields.text(prefix)
    if not named:
        return default or None
    templates = ({"default": default} if default else {}) | named
    return [{"name": name, "template": template} for name, template in templates.items()]


def byte_letters() -> dict[int, str]:
    """GPT-2's letter for each byte: itself where it can be seen, else one from U+0100 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {byte: chr(byte) for byte in seen}
    for byte in range(256):
        letters.setdefault(byte, chr(256 + len(letters) - len(seen)))
    return letters
