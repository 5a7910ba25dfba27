"""How models write calls and reasoning: each family learned its own markup, which its chat template shows.

Where a marker is a special token of the tokenizer, as ``[TOOL_CALLS]`` is of Mistral's, decoding leaves it
out and no text of a grammar can be it: such markers are known here by their token too.
"""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from shoal.gateway.markup.arguments import KEYED, NAME, XML, Tags
from shoal.models.text.codec import TextCodec
from shoal.models.text.detokenizer import Detokenizer


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one family of models writes calls."""

    name: str
    openings: tuple[str, ...]
    """Markers of which each begins one call or more."""
    endings: tuple[str, ...] = ()
    """What else belongs to the markup around arguments: skipped, like blanks, behind each call."""
    inside: tuple[str, ...] = ()
    """Other markers within a call."""
    head: re.Pattern[str] | None = None
    """What stands between an opening and the arguments, where that is no JSON; its group is the name."""
    begins_head: re.Pattern[str] | None = None
    """What may still become ``head``, as a whole."""
    bare: bool = False
    """Whether an answer may also be a call from its first letter on, ``{"name": …}``, without any marker."""
    arguments: str = "arguments"
    """What the arguments are called where a call is JSON."""
    mentioned: tuple[str, ...] = ()
    """What a chat template of this dialect says, if not the first opening."""
    together: str = ""
    """What its template says too."""
    tags: tuple[Tags, ...] = ()
    """In which tags arguments may be, where they are no JSON."""
    python: bool = False
    """Whether calls are written as Python: ``[f(a=1)]``."""
    short_ids: bool = False
    """Whether its templates demand ids of nine letters and digits."""

    @property
    def markers(self) -> tuple[str, ...]:
        """Whatever may be a special token of the tokenizer."""
        return (*self.openings, *self.endings, *self.inside)

    def new_id(self) -> str:
        """An id for a call."""
        if self.short_ids:
            return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
        return f"call_{secrets.token_hex(12)}"


HERMES = Dialect(
    "hermes", ("<tool_call>",), ("}", "]", ",", "</function>", "</tool_call>"), tags=(XML, KEYED)
)
"""Hermes, Qwen, SmolLM, and whoever is told how by our own instructions."""
QWEN_CODER = Dialect(
    "qwen_coder",
    ("<tool_call>", "<function="),
    ("}", "]", ",", "</function>", "</tool_call>"),
    mentioned=("<function=",),
    tags=(XML,),
)
"""``<tool_call><function=f><parameter=a>1</parameter></function></tool_call>``; some leave out the first."""
GLM = Dialect(
    "glm", ("<tool_call>",), ("}", "]", ",", "</tool_call>"), mentioned=("<arg_key>",), tags=(KEYED,)
)
"""``<tool_call>f<arg_key>a</arg_key><arg_value>1</arg_value></tool_call>``"""
MISTRAL = Dialect(
    "mistral",
    ("[TOOL_CALLS]",),
    ("}", "]", ","),
    ("[ARGS]", "[CALL_ID]"),
    head=re.compile(rf"({NAME})(?:\[CALL_ID\]\w{{1,64}})?(?:\[ARGS\])?\s*(?=\{{)"),
    begins_head=re.compile(rf"(?:{NAME})?(?:\[[A-Z_]{{0,7}}\]?\w{{0,64}}){{0,2}}\s{{0,8}}"),
    short_ids=True,
)
"""``[TOOL_CALLS][{"name": …, "arguments": …}]``, or ``[TOOL_CALLS]name[ARGS]{…}`` since 2025."""
LLAMA = Dialect(
    "llama",
    ("<|python_tag|>",),
    ("}", ";", ","),
    bare=True,
    arguments="parameters",
    mentioned=("<|python_tag|>", 'function name, "parameters"'),
)
"""Llama 3: ``{"name": …, "parameters": …}``, with or without its marker; several are parted by semicolons."""
PYTHONIC = Dialect(
    "pythonic",
    ("<|python_start|>", "<|tool_call_start|>"),
    ("}", ";", "]", ",", "<|python_end|>", "<|tool_call_end|>"),
    begins_head=re.compile(rf"\[?\s{{0,8}}(?:{NAME})?"),
    bare=True,
    arguments="parameters",
    mentioned=("[func_name1(", "<|tool_call_start|>"),
    python=True,
)
"""Llama 3.2 and 4 and LFM 2: ``[f(a=1), g()]``, with or without a marker."""
DEEPSEEK = Dialect(
    "deepseek",
    ("<｜tool▁calls▁begin｜>",),
    ("```", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
    ("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"),
    head=re.compile(
        rf"<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>)?({NAME})(?:<｜tool▁sep｜>|\s*```json)\s*(?=\{{)"
    ),
    begins_head=re.compile(r"<[^>]{0,24}|<｜tool▁call▁begin｜>(?:[^{]{0,256})"),
)
DEEPSEEK_R1 = replace(DEEPSEEK, name="deepseek_r1", together="```json")
"""Before 3.1: the arguments of a call are fenced."""
KIMI = Dialect(
    "kimi",
    ("<|tool_calls_section_begin|>",),
    ("<|tool_call_end|>", "<|tool_calls_section_end|>"),
    ("<|tool_call_begin|>", "<|tool_call_argument_begin|>"),
    head=re.compile(
        rf"<\|tool_call_begin\|>\s*(?:functions\.)?({NAME})(?::\d+)?\s*"
        r"<\|tool_call_argument_begin\|>\s*(?=\{)"
    ),
    begins_head=re.compile(r"<[^>]{0,24}|<\|tool_call_begin\|>(?:[^{]{0,256})"),
)
GRANITE = Dialect("granite", ("<|tool_call|>",), ("}", "]", ",", "<|/tool_call|>"))
"""Granite 3 and Phi 4: ``<|tool_call|>[{"name": …, "arguments": …}]``."""
GPT_OSS = Dialect(
    "gpt_oss",
    (),
    ("<|call|>", "<|end|>", "<|return|>"),
    ("<|channel|>", "<|constrain|>", "<|message|>", "<|start|>"),
    mentioned=("<|channel|>",),
)
"""gpt-oss parts its answer into channels, of which one thinks, one calls, and one is read by people: see
:mod:`shoal.gateway.markup.harmony`."""
KNOWN = (
    *(GPT_OSS, MISTRAL, DEEPSEEK_R1, DEEPSEEK, KIMI, GRANITE),
    *(QWEN_CODER, GLM, HERMES, PYTHONIC, LLAMA),
)
UNKNOWN = Dialect(
    "unknown",
    ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<|tool_call|>"),
    ("}", "]", ",", ";", "</function>", "</tool_call>", "<|/tool_call|>"),
    MISTRAL.inside,
    head=MISTRAL.head,
    begins_head=MISTRAL.begins_head,
    bare=True,
    tags=(XML, KEYED),
)
"""A template that says nothing of calls. The model may have learned any; it is told of Hermes's."""
REASONING = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|channel|>analysis<|message|>", "<|end|>"),
)
"""Between which markers models think, before they answer."""


@dataclass(frozen=True, slots=True)
class Markup:
    """How one model writes calls and reasoning."""

    dialect: Dialect = UNKNOWN
    reasoning: tuple[str, str] = REASONING[0]
    tokens: Mapping[str, int] = field(default_factory=dict[str, int])
    """The markers that are special tokens."""

    def detokenizer(self, codec: TextCodec) -> Detokenizer:
        """One that gives the markers out too."""
        return MarkedDetokenizer(codec, self.tokens) if self.tokens else codec.detokenizer()


def markup_of(codec: TextCodec | None) -> Markup:
    """What the model's chat template and tokenizer tell of its markup."""
    if codec is None:
        return Markup()
    template = codec.template
    dialect = next((one for one in KNOWN if _taught(one, template)), UNKNOWN)
    reasoning = next((pair for pair in REASONING if _reasons(codec, *pair)), REASONING[0])
    words = (*dialect.markers, *reasoning)
    tokens = {word: codec.special_token(word) for word in words}
    return Markup(dialect, reasoning, {word: token for word, token in tokens.items() if token is not None})


def _taught(dialect: Dialect, template: str) -> bool:
    words = dialect.mentioned or dialect.openings[:1]
    return any(word in template for word in words) and dialect.together in template


def _reasons(codec: TextCodec, opening: str, closing: str) -> bool:
    if opening.startswith("<|channel|>"):
        return "<|channel|>" in codec.template
    return closing in codec.template or codec.special_token(closing) is not None


class MarkedDetokenizer(Detokenizer):
    """Gives some special tokens out as text, which are markup, and no text to the decoder."""

    def __init__(self, codec: TextCodec, markers: Mapping[str, int]) -> None:
        super().__init__(codec)
        self._source = codec
        self._markers = {token: word for word, token in markers.items()}

    def push(self, token: int) -> str:
        """The text that is certain now. A marker ends what was held back before it."""
        word = self._markers.get(token)
        if word is None:
            return super().push(token)
        text = self.finish() + word
        super().__init__(self._source)
        return text
