"""What is wrong with a body, as a sentence that names the field. What was sent is not repeated."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic_core import ErrorDetails

from shoal.gateway.schema.common import MISFIT, NOT_TEXT, is_tag

MAX_WHERE = 200
"""Characters of a path that are told."""
_SAID: Mapping[str, str] = {
    "missing": "is missing",
    "string_type": "must be a string",
    "string_unicode": "must be valid Unicode",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "may have at most {max_length} characters",
    "string_pattern_mismatch": "must match {pattern}",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "is too large",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "too_short": "must have at least {min_length} items",
    "too_long": "may have at most {max_length} items",
    "literal_error": "must be {expected}",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "may be at most {le}",
    "extra_forbidden": "is no field that is taken here",
    "none_required": "is not supported: leave it out",
}
"""By pydantic's names of errors, whose own sentences speak of Python's types."""


def sentence(fault: ErrorDetails) -> tuple[str, str | None]:
    """What to tell of a fault, and the field that it is about by its path: ``messages.0.content.1``."""
    context = fault.get("ctx", {})
    if fault["type"] == "json_invalid":
        return f"the body is not JSON: {context.get('error', 'it cannot be read')}", None
    path = [str(part) for part in fault["loc"] if not is_tag(part) and part != "[key]"]
    path += [context["field"]] if context.get("field") else []
    where = ".".join(path)[:MAX_WHERE]
    if fault["type"] == NOT_TEXT:
        return f"this model takes text only; {where} is {context['kind']}", where
    if fault["type"] == MISFIT:
        said = fault["msg"]
    elif context.get("min_length") == 1:
        said = "must not be empty"
    else:
        said = _SAID.get(fault["type"], "is not what is taken here").format_map(context)
    if fault["loc"][-1:] == ("[key]",):
        said = f"is no name that is taken there: it {said}"
    return f"{where or 'the body'} {said}", where or None
