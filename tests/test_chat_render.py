"""Chat templates: transformers' renderings, hostile templates, the process that renders."""

import json
import threading
import time
from datetime import datetime
from functools import cache
from typing import Any

import pytest
from conftest import shared

from qllama.chat import TemplateError, render
from qllama.chat.render import Renderer
from qllama.errors import InputError, QllamaError

HELLO = [{"role": "user", "content": "Hello"}]


@cache
def recorded() -> dict[str, Any]:
    return json.loads(shared("oracles/templates.json").read_text(encoding="utf-8"))


def rendering(name: str, row: dict[str, Any]) -> dict[str, str]:
    """What `render` makes of a recorded row: its text or its error."""
    conversation = next(c for c in recorded()["conversations"] if c["name"] == row["conv"])
    try:
        text = render(
            shared(f"templates/{name}").read_bytes().decode(),
            conversation["messages"],
            tools=conversation.get("tools"),
            add_generation_prompt=row["add_generation_prompt"],
            bos_token=recorded()["bos_token"],
            eos_token=recorded()["eos_token"],
            now=recorded()["now"],
        )
    except TemplateError as error:
        return {"error": str(error).removeprefix("chat template: ")}
    return {"out": text}


def test_every_recorded_rendering() -> None:
    rows = [(name, row) for name, template in recorded()["templates"].items() for row in template["rows"]]
    assert len(rows) == 700
    wrong = [
        (name, row["conv"])
        for name, row in rows
        if rendering(name, row) != {k: row[k] for k in ("out", "error") if k in row}
    ]
    assert not wrong


def test_other_keywords_reach_the_template() -> None:
    template = "{{ enable_thinking }} {{ documents }} {{ tools }} {{ other is defined }} {{ bos_token is defined }}"
    assert render(template, [], enable_thinking=False) == "False None None False False"
    assert render(template, [], documents=[1], tools=[{}], other=None, bos_token="") == " [1] [{}] True True"


def test_what_transformers_adds_to_jinja() -> None:
    assert render("{% generation %}{% set x = 1 %}a{% endgeneration %}{{ x }}", []) == "a"
    assert render("{% for m in [1, 2] %}{{ m }}{% break %}{% endfor %}", []) == "1"
    assert render("{{ strftime_now('%d %B %Y') }}", [], now=datetime(2026, 1, 15)) == "15 January 2026"
    assert len(render("{{ strftime_now('%Y') }}", [])) == 4
    assert render("{{ x | tojson(indent=1) }}", [], x={"ü": "<b>"}) == '{\n "ü": "<b>"\n}'
    assert render("  {% if true %}\nx\n  {% endif %}\ny\n", []) == "x\ny"  # trim_blocks, lstrip_blocks


def test_lone_surrogates_and_odd_characters_survive() -> None:
    content = "a\udcff\0\u2028<&>"
    assert render("{{ messages[0].content }}", [{"role": "user", "content": content}]) == content


# The behaviour that each of these must have is listed in the shared facts about hostile inputs.
HOSTILE = {
    "syntax": ("{% if %}", "TemplateSyntaxError"),
    "raise": ("{{ raise_exception('no\\nway') }}", "TemplateError: no\nway"),
    "include": ("{% include '/etc/passwd' %}", "TypeError: no loader"),
    "import": ("{% import 'x' as x %}", "TypeError: no loader"),
    "long range": ("{% for i in range(10**9) %}x{% endfor %}", "OverflowError"),
    "nested ranges": (
        "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
        "longer than 1.5 s",
    ),
    "long text": ("{{ 'a' * 10**10 }}", "MemoryError"),
    "doubling": (
        "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "MemoryError",
    ),
    "wide list": ("{{ [0] * 10**9 }}", "MemoryError"),
    "indent": ("{{ 'a\nb' | indent(2000000000) }}", "MemoryError"),
    "power": ("{{ 9 ** (9 ** 9) }}", "longer than 1.5 s"),
    "padding": ("{{ '%2000000000d' | format(1) }}", "MemoryError"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "parentheses": ("{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}", "RecursionError"),
    "class": ("{{ ''.__class__.__mro__ }}", "SecurityError: access to attribute '__class__'"),
    "globals": ("{{ cycler.__init__.__globals__ }}", "SecurityError"),
    "format": ("{{ '{0.__class__.__mro__}'.format(1) }}", "SecurityError"),
    "strftime": ("{{ strftime_now.__self__.year }}", "SecurityError"),
    "raise function": ("{{ raise_exception.__globals__.sys }}", "SecurityError"),
    "change": ("{{ messages.append(1) }}", "SecurityError"),
    "too long": ("{#" + "x" * (1 << 20) + "#}", "1048580 bytes, must have at most 1048576"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates(name: str) -> None:
    template, words = HOSTILE[name]
    with pytest.raises(TemplateError) as caught:
        render(template, HELLO)
    assert words in str(caught.value)
    assert render("{{ messages[0].content }}", HELLO) == "Hello"  # and the next one is served


def test_python_is_out_of_reach() -> None:
    """What Jinja's sandbox forbids is undefined, and prints as nothing until something is asked of it."""
    for expression in ("''.__class__", "'{0.__class__}'.format(1)", "strftime_now.__self__", "namespace.__init__"):
        assert render("[{{ " + expression + " }}]", []) == "[]"


def test_long_conversations_are_not_hostile() -> None:
    messages = [{"role": "user", "content": "word " * 1000}] * 1000
    assert len(render("{% for m in messages %}{{ m.content }}{% endfor %}", messages)) == 5_000_000


def test_an_error_is_short() -> None:
    with pytest.raises(TemplateError) as caught:
        render("{{ raise_exception('x' * 10**6) }}", [])
    assert len(str(caught.value)) < 600


def test_what_json_cannot_hold_is_refused() -> None:
    for value in (object(), float("nan"), {1, 2}):
        with pytest.raises(InputError, match="plain JSON data"):
            render("", [], value=value)


@pytest.fixture
def renderer():
    made = Renderer()
    yield made
    made.close()


def ask(renderer: Renderer, template: str) -> dict[str, str]:
    return renderer.ask(json.dumps({"template": template, "variables": {}, "now": None}).encode())


def test_the_process_is_kept_and_replaced_when_it_dies(renderer: Renderer) -> None:
    renderer.start()
    first = renderer._process
    assert ask(renderer, "a") == {"text": "a"} == ask(renderer, "{{ 'a' }}")
    assert first is not None and renderer._process is first
    first.kill()
    first.wait()
    assert ask(renderer, "b") == {"text": "b"}
    assert renderer._process is not first


def test_threads_share_it(renderer: Renderer) -> None:
    texts: list[str] = []
    threads = [
        threading.Thread(target=lambda i=i: texts.append(ask(renderer, f"{{{{ {i} }}}}")["text"])) for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(texts) == [str(i) for i in range(8)]


def test_an_interrupt_does_not_mix_up_answers(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(renderer, "")

    def interrupted(*_: object) -> dict[str, str]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(renderer, "_receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ask(renderer, "first")
    assert ask(renderer, "second") == {"text": "second"}


def test_a_process_that_hangs_is_given_up(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(renderer, "")
    assert renderer._process is not None
    with pytest.raises(TemplateError, match="takes too long"):
        renderer._receive(renderer._process, time.monotonic() + 0.05)


def test_a_process_that_cannot_start(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    with pytest.raises(QllamaError, match="cannot start"):
        ask(renderer, "")
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(QllamaError, match=r"cannot start|died"):
        ask(renderer, "")
