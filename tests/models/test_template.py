"""Chat templates are other people's programs: they end, stay small, and reach nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from shoal.errors import BadWeights, UsageError
from shoal.models.text import template_child
from shoal.models.text.template import TemplateRenderer

CHILD = Path(template_child.__file__)

MESSAGES = [{"role": "system", "content": "be <b>"}, {"role": "user", "content": "Grüße\n"}]
HONEST = [
    "{% for m in messages %}{{ m.role }}: {{ m['content'] | trim }}\n{% endfor %}{{ eos }}",
    "{%- set ns = namespace(n=0) %}{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}"
    "{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ m | tojson }}{% endfor %}",
    "{% if add_generation_prompt %}go{% endif %}{% generation %}x{% endgeneration %}{{ dict(a=1) }}",
    "{{ messages[1]['content'].split('ü')[0].upper() }}{{ 'on' if enable_thinking else 'off' }}",
]


@pytest.fixture
def renderers() -> Generator[list[TemplateRenderer]]:
    made: list[TemplateRenderer] = []
    yield made
    for renderer in made:
        renderer.close()


@pytest.mark.parametrize("template", HONEST)
def test_an_honest_template_renders_as_in_transformers(
    template: str, renderers: list[TemplateRenderer]
) -> None:
    renderers.append(TemplateRenderer(template, {"eos": "</s>"}))
    (expected,), _ = render_jinja_template(
        [MESSAGES], chat_template=template, add_generation_prompt=True, eos="</s>", enable_thinking=True
    )
    assert renderers[0].render(MESSAGES, {"enable_thinking": True}).text == expected


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"  # noqa: E501


@pytest.mark.parametrize(
    "template", [ENDLESS, "{{ 'a' * 10**11 }}", "{{ ('a' * 10**8) * 100 }}{{ 9**9**9 }}"]
)
def test_a_template_that_would_never_end_is_ended(template: str, renderers: list[TemplateRenderer]) -> None:
    renderers.append(TemplateRenderer(template, {}, deadline_s=0.6))
    began = time.monotonic()
    with pytest.raises((BadWeights, UsageError)):
        renderers[0].render(MESSAGES)
    assert time.monotonic() - began < 30


def test_after_a_bad_template_the_next_request_is_served(renderers: list[TemplateRenderer]) -> None:
    template = "{% if messages[0].content == 'hang' %}" + ENDLESS + "{% endif %}fine"
    renderers.append(TemplateRenderer(template, {}, deadline_s=2.0))
    with pytest.raises(BadWeights, match="did not end"):
        renderers[0].render([{"role": "user", "content": "hang"}])
    assert renderers[0].render(MESSAGES).text == "fine"


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__.keys() }}",
        "{{ namespace.__init__.__globals__ }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ dict.mro() }}",
        "{{ cycler.__init__.__globals__.os.system('touch pwned') }}",
        "{% include '/etc/passwd' %}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('no system role') }}",
        "{% for %}",
    ],
)
def test_a_template_that_reaches_out_is_refused(
    template: str, renderers: list[TemplateRenderer], tmp_path: Path
) -> None:
    renderers.append(TemplateRenderer(template, {}))
    with pytest.raises(UsageError, match="refuses"):
        renderers[0].render(MESSAGES)


def test_messages_that_are_not_data_are_refused(renderers: list[TemplateRenderer]) -> None:
    renderers.append(TemplateRenderer("x", {}))
    with pytest.raises(UsageError, match="JSON"):
        renderers[0].render([{"role": object()}])
    with pytest.raises(UsageError, match="larger"):
        renderers[0].render([{"role": "user", "content": "a" * (9 << 20)}])
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(UsageError):
        renderers[0].render([{"content": deep}])
    assert renderers[0].render(MESSAGES).text == "x"


def test_a_template_that_would_never_end_ends_also_when_nobody_is_left_to_end_it() -> None:
    child = (
        f"import sys; sys.path.insert(0, {str(CHILD.parent)!r}); import template_child as child\n"
        "child.LONGEST_S = 0.5; child.main()"
    )
    request = {"template": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"}
    words = [sys.executable, "-I", "-c", child]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(request | {"own": {}, "given": {}, "messages": []}).encode() + b"\n")
        process.stdin.flush()
        assert process.wait(20) != 0


def test_a_ctrl_c_at_the_terminal_does_not_end_the_renderer(renderers: list[TemplateRenderer]) -> None:
    renderers.append(TemplateRenderer(HONEST[0], {"eos": "</s>"}))
    renderers[0].render(MESSAGES)
    pid = renderers[0].pid
    assert pid is not None
    assert os.getpgid(pid) != os.getpgid(0)
