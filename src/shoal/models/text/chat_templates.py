"""A model's chat templates: by which template, in which form, and whose words become control tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from shoal.errors import BadWeights, UsageError
from shoal.models.text.pictures import ShownPictures
from shoal.models.text.template import RenderedTemplate, TemplateRenderer
from shoal.models.text.tokenizer.guard import Words
from shoal.models.text.tokenizer.tokenizer import ModelTokenizer

ChatMessage = Mapping[str, Any]
PICTURE_PART = {"type": "image"}
"""The part of a message's content that shows a picture, as templates read it."""
PROBE = "q7w9e1"
"""What an assistant says when a template is asked how it ends a turn."""


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """What a model is given to go on with."""

    text: str
    """For a reader: in it a control word of the user's looks like one of the template's."""
    token_ids: list[int]
    own_end: str = ""
    """What stands behind all that users, tools and assistants say: the template's own words, which may open
    the answer. Of a text that is given as it is, the whole of it."""
    pictures: tuple[int, ...] = ()
    """Where among the tokens each picture that it shows begins."""


class ChatTemplates:
    """A model's chat templates at work. From any thread."""

    def __init__(self, templates: Mapping[str, str], vocabulary: ModelTokenizer, words: Words) -> None:
        self._templates = templates
        self._vocabulary = vocabulary
        self._words = words
        unknown = vocabulary.token_id(vocabulary.named.get("unk_token", ""))
        self._tokens = frozenset(words.ids.values()) - {unknown}
        self._renderers = {name: TemplateRenderer(text, vocabulary.named) for name, text in templates.items()}
        self._forms: dict[str, int] = {}
        """Which of FORMS each template was found to read."""

    @property
    def any(self) -> bool:
        """Whether there are templates."""
        return bool(self._templates)

    @property
    def takes_tools(self) -> bool:
        """Whether a template knows what tools are."""
        return any("tools" in template for template in self._templates.values())

    def prompt(
        self,
        messages: Sequence[ChatMessage],
        options: Mapping[str, Any],
        check: Callable[[str], None],
        shown: ShownPictures | None = None,
    ) -> EncodedPrompt:
        """The prompt for a conversation. See :meth:`shoal.models.text.codec.TextCodec.prompt`.

        Args:
            check: raises where there is too much text.
        """
        if not self.any:
            if shown is not None:
                raise _no_place()
            text = "\n\n".join(_text(message) for message in messages)
            check(text)
            return EncodedPrompt(text, self._encoded(text, [(0, len(text))], special=True))
        # Templates expect these to be defined: in Jinja what is undefined "is not none".
        given = {"tools": None, "documents": None, **options}
        rendered = self._rendered(self._name(given), messages, given, pictures=shown is not None)
        text, foreign = rendered.text, rendered.foreign
        plain = rendered.marked != text and not _mentions(self._words, [list(messages), given])
        if rendered.marked != text and not plain:
            if rendered.marked is None:
                raise UsageError(
                    "the messages hold control words of this model, and its chat template cannot tell them "
                    "from its own",
                    check=f"remove texts like {next(iter(self._words.ids), '')!r} from the messages",
                )
            text = rendered.marked
        if shown is not None:
            text, foreign = shown.put(text, () if plain else foreign)
        check(text)
        encode = self._vocabulary.encode if plain else partial(self._encoded, foreign=foreign)
        ids, pictures = encode(text, special=False), ()
        if shown is not None:
            ids, pictures = shown.spread(ids)
        return EncodedPrompt(text, ids, _own_end(rendered, messages), pictures)

    def told(self, messages: Sequence[ChatMessage], options: Mapping[str, Any]) -> str:
        """A conversation that ends with what an assistant said, and not with the beginning of an answer.

        Raises:
            UsageError: there is no template, or it refuses the messages.
            BadWeights: it does not end in time.
        """
        if not self.any:
            raise UsageError("the model has no chat template, and so no way to write calls or thoughts")
        given = {"tools": None, "documents": None, **options}
        return self._rendered(self._name(given), messages, given, answer=False).text

    def turn_ends(self) -> frozenset[int]:
        """The control token that the template writes behind what an assistant said, if it writes one."""
        messages = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": PROBE},
            {"role": "user", "content": "b"},
        ]
        try:
            given: dict[str, Any] = {"tools": None, "documents": None}
            text = self._rendered(self._name(given), messages, given).text
        except (UsageError, BadWeights):
            return frozenset()  # it has no way to show it, or wants another conversation
        _, _, behind = text.rpartition(PROBE)
        found = self._words.found(behind.lstrip())[:1]
        return frozenset(self._words.ids[behind.lstrip()[a:b]] for a, b in found if a == 0)

    def _encoded(self, text: str, foreign: Sequence[tuple[int, int]], *, special: bool) -> list[int]:
        """Token ids of ``text`` in which control words are the template's alone.

        As a rule there are no others, and the tokenizer itself encodes it. What it makes of that is looked
        at again: some find control tokens also in letters that only look alike.
        """
        own = self._words.own(text, foreign)
        if own == self._words.found(text):
            ids = self._vocabulary.encode(text, special=special)
            around = len(self._vocabulary.encode("", special=True)) if special else 0
            if sum(token in self._tokens for token in ids) <= len(own) + around:
                return ids
        return self._words.encode(text, own, special=special)

    def _name(self, given: Mapping[str, Any]) -> str:
        """The template for what is given: one for tools or documents where there is one."""
        for name, needed in (("tool_use", "tools"), ("rag", "documents")):
            if given.get(needed) and name in self._templates:
                return name
        if "default" in self._templates:
            return "default"
        if len(self._templates) == 1:
            return next(iter(self._templates))
        raise UsageError(
            f"this model has chat templates for {', '.join(sorted(self._templates))} alone",
            check="check that the model is made for chat, and that the request fits its chat template",
        )

    def _rendered(
        self,
        name: str,
        messages: Sequence[ChatMessage],
        given: Mapping[str, Any],
        *,
        pictures: bool = False,
        answer: bool = True,
    ) -> RenderedTemplate:
        """The conversation in the form that the template reads, which is found by trying.

        Args:
            pictures: whether messages show some: then a content is no text alone.
            answer: whether the beginning of an answer is put behind them.

        Raises:
            UsageError: the template refuses it in every form, or leaves out what the user says.
        """
        best = self._forms.get(name, 0)
        order = sorted(range(1 if pictures else 0, len(FORMS)), key=lambda form: form != best)
        refused: UsageError | None = None
        found: dict[int, RenderedTemplate] = {}
        for form in order:
            try:
                rendered = self._renderers[name].render(FORMS[form](messages), given, answer=answer)
            except UsageError as error:
                refused = refused or error
                continue
            if (form and rendered.printed) or not _says(rendered, messages, "user"):
                continue
            found[form] = rendered
            if _says(rendered, messages, "system"):
                break
        if not found and pictures:
            raise refused or _no_place()
        if not found:
            raise refused or UsageError(
                "the model's chat template leaves out what the user says",
                check="check the roles of the messages; the template may be for another use of the model",
            )
        # Where none has the system's words, the template has no place for them.
        form = next((f for f, one in found.items() if _says(one, messages, "system")), min(found))
        if not pictures:
            self._forms[name] = form
        return found[form]


def pictures_in(messages: Sequence[ChatMessage]) -> int:
    """How many pictures a conversation shows."""
    contents = [message.get("content") for message in messages]
    lists = [cast("list[object]", content) for content in contents if isinstance(content, list)]
    return sum(part == PICTURE_PART for parts in lists for part in parts)


def _no_place() -> UsageError:
    return UsageError(
        "the model's chat template has no place for pictures",
        check="ask it for text alone, or send a prompt that has the model's own word for a picture",
    )


def _own_end(rendered: RenderedTemplate, messages: Sequence[ChatMessage]) -> str:
    """What the template has written behind all that is not its own."""
    if rendered.marked is not None:
        return rendered.marked[max((end for _, end in rendered.foreign), default=0) :]
    # Whose words are where is not known: nothing, where it ends as somebody's does.
    text = rendered.text.rstrip()
    said = (_text(message).strip() for message in messages)
    return "" if any(one and text.endswith(one) for one in said) else text


def _says(rendered: RenderedTemplate, messages: Sequence[ChatMessage], role: str) -> bool:
    """Whether what the last message of ``role`` says is in the prompt; nothing always is."""
    said = next((_text(message) for message in reversed(messages) if message.get("role") == role), "").strip()
    there = rendered.user if role == "user" else rendered.system
    return not said or (there if rendered.marked is not None else said in rendered.text)


def _text(message: ChatMessage) -> str:
    """What a message says, as one text.

    Raises:
        UsageError: it has parts that are no text.
    """
    content: object = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = cast("list[object]", content) if isinstance(content, list) else [content]
    texts: list[str] = []
    for part in parts:
        if part == PICTURE_PART:
            continue
        text = cast("dict[str, object]", part).get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            raise UsageError(
                "a message has a part that is no text", check="send messages whose parts are text"
            )
        texts.append(text)
    return "".join(texts)


def _as_strings(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    return [
        dict(message) | ({"content": _text(message)} if isinstance(message.get("content"), list) else {})
        for message in messages
    ]


def _as_parts(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    return [
        dict(message)
        | ({"content": [{"type": "text", "text": message["content"]}]} if _is_text(message) else {})
        for message in messages
    ]


def _as_parts_but_system(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    pairs = zip(_as_strings(messages), _as_parts(messages), strict=True)
    return [text if text.get("role") == "system" else parts for text, parts in pairs]


def _is_text(message: ChatMessage) -> bool:
    return isinstance(message.get("content"), str)


FORMS = (_as_strings, _as_parts, _as_parts_but_system)
"""How a template may want its messages: contents as text, as lists of parts, or one for each."""


def _mentions(words: Words, value: object) -> bool:
    """Whether a control word is in any text of ``value``."""
    if isinstance(value, str):
        return words.are_in(value)
    if isinstance(value, dict):
        return any(
            _mentions(words, part) for pair in cast("dict[object, object]", value).items() for part in pair
        )
    if isinstance(value, list | tuple):
        return any(_mentions(words, part) for part in cast("list[object]", value))
    return False
