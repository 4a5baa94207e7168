"""LLM.chat and the options of `qllama run` for conversations: prompts, ids, reuse of the cache, context shifts."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import shared
from test_llm import PUBLISHED
from test_run import error_line, qllama

from qllama.chat.messages import parse_messages, read_messages
from qllama.errors import FileError, InputError
from qllama.generate import Stats, shifted
from qllama.llm import LLM

STORIES = "models/stories260K-f32.gguf"
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def stories():
    llm = LLM(shared(STORIES), n_threads=2, chat_template=TEMPLATE)
    yield llm
    llm.close()


def test_an_answer_is_the_continuation_of_the_rendered_prompt(stories: LLM) -> None:
    beginning = "Once upon a time, there was a little girl named"
    assert "".join(stories.chat(user(beginning), n_predict=100, temp=0)) in PUBLISHED[len(beginning) + 1 :]
    assert stories.chat_template.origin == "given by the user"


def test_bos_is_never_doubled(stories: LLM) -> None:
    bos = stories.tokenizer.bos
    for text in ("Once", "<s>Once", ""):
        ids = stories.chat_prompt(user(text)).ids
        assert ids[0] == bos and bos not in ids[1:]
    assert stories.chat_prompt(user("Once")).ids == stories.tokenize("Once")
    assert stories.chat_prompt(user("Once")).text == "<s>Once"


def test_without_a_template_the_user_has_to_choose() -> None:
    llm = LLM(shared(STORIES))
    with pytest.raises(InputError, match="choose one with --chat-template"):
        llm.chat(user("a"))
    llm.close()
    with pytest.raises(InputError, match="--chat-template: found 'none'"):
        LLM(shared(STORIES), chat_template="none")
    small = LLM()
    assert small.chat_prompt(user("a")).text == "a\n"  # the model that comes with the package continues text
    small.close()


def test_what_is_cached_is_not_computed_again_and_changes_nothing(stories: LLM) -> None:
    fresh = LLM(shared(STORIES), n_threads=1, chat_template=TEMPLATE)
    story, messages = "", []
    for text in ("Once upon a time", " Then Tom", " At last"):
        messages += user(text)
        stats, again = Stats(), Stats()
        answer = "".join(stories.chat(messages, n_predict=20, stats=stats, seed=3))
        fresh.eval([1])  # forget
        assert answer == "".join(fresh.chat(messages, n_predict=20, stats=again, seed=3))
        assert again.n_cached == 1
        assert stats.n_cached > (stats.n_prompt - 12 if story else 0)
        assert stats.n_prompt == again.n_prompt
        messages.append({"role": "assistant", "content": answer})
        story += text + answer
    fresh.close()


def test_the_model_knows_what_it_has_cached(stories: LLM) -> None:
    stories.eval([1, 5, 6, 7])
    assert stories.model.cached == [1, 5, 6, 7]
    assert stories.model.reusable([1, 5, 8]) == 2
    assert stories.model.reusable([1, 5, 6, 7]) == 3
    stories.model.forward([9], 2)
    assert stories.model.cached == [1, 5, 9]


def test_reasoning_marks_and_stop_and_template_arguments() -> None:
    llm = LLM(shared(STORIES), chat_template="{{ start }}{{ messages[0].content }}")
    text = "".join(llm.chat(user(""), template_kwargs={"start": "Once"}, n_predict=40, temp=0, stop=["She"]))
    assert text == PUBLISHED[len("Once") : PUBLISHED.index("She")].removeprefix(" ")
    llm.close()


def test_a_full_context_ends_with_its_reason_or_shifts() -> None:
    llm, whole = LLM(shared(STORIES), n_ctx=64), LLM(shared(STORIES))
    stats = Stats()
    text = "".join(llm.generate("Once", temp=0, stats=stats))
    assert stats.finish_reason == "length" and stats.context_full
    assert stats.n_prompt + stats.n_generated == 65
    ids = llm.tokenize("Once")
    shifted_stats = Stats()
    longer = "".join(llm.generate("Once", n_predict=90, temp=0, stats=shifted_stats, n_keep=2))
    assert longer.startswith(text) and shifted_stats.n_generated == 90 and not shifted_stats.context_full
    assert shifted_stats.n_dropped == 32
    # What follows a shift is what another model says to the tokens that were kept.
    tokens = list(ids)
    for _ in range(90):
        if len(tokens) > 64:
            tokens = tokens[:2] + tokens[2 + (len(tokens) - 1) // 2 :]
        tokens.append(int(whole.eval(tokens)[-1].argmax()))
    assert longer.endswith(whole.detokenize(tokens[2:]))
    llm.close()
    whole.close()


def test_what_a_shift_leaves() -> None:
    tokens = list(range(11))
    assert shifted(tokens, 0) == [6, 7, 8, 9, 10]
    assert shifted(tokens, 3) == [0, 1, 2, 7, 8, 9, 10]
    assert shifted(tokens, 100) == [0, 1, 2, 3, 4, 8, 9, 10]


def test_messages_from_json(tmp_path: Path) -> None:
    plain = parse_messages('[{"role": "user", "content": "a"}]', "x")
    assert plain.messages == user("a") and plain.tools is None
    whole = parse_messages(b'{"messages": [{"role": "assistant", "tool_calls": []}], "tools": [{}]}', "x")
    assert whole.messages == [{"role": "assistant", "tool_calls": [], "content": None}] and whole.tools == [{}]
    for text, words in (
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("1", "must be a list of messages"),
        ("{}", "must be a list of messages"),
        ("[1]", "message 0 must be an object"),
        ('[{"role": 1}]', "message 0 must be an object"),
        ('[{"role": "user", "content": 5}]', "message 0: content must be a string, found int"),
        ('{"messages": [], "tools": {}}', "tools must be a list, found dict"),
    ):
        with pytest.raises(FileError, match=words):
            parse_messages(text, "x")
    with pytest.raises(FileError, match="cannot read the messages"):
        read_messages(str(tmp_path / "none.json"))


def test_run_answers_messages(tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    file.write_text(json.dumps(user("Once upon a time, there was a little girl named")))
    common = ("run", shared(STORIES), "-n", 12, "--temp", 0, "-q", "--chat-template", TEMPLATE)
    answer = qllama(*common, "--messages", file).stdout.decode()
    assert answer.startswith("Lily. She loved to play") and answer[:-1] in PUBLISHED
    text = user("Once upon a time, there was a little girl named")[0]["content"]
    assert qllama(*common, "-p", text).stdout.decode() == answer
    assert qllama(*common, stdin=text.encode()).stdout.decode() == answer


def test_run_says_why_it_stopped() -> None:
    common = ("run", shared(STORIES), "-p", "Once", "-c", 40, "--temp", 0)
    assert "ended by length (the context is full)" in qllama(*common).stderr.decode()
    shifting = qllama(*common, "--context-shift", "--keep", 1, "-n", 60).stderr.decode()
    assert "ended by length | context shifts dropped 40 tokens" in shifting


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--messages", "/nonexistent.json"), "/nonexistent.json: cannot read the messages"),
        (("--messages", "x.json", "-p", "x"), "--messages cannot be used with -p"),
        (("--chat-template", "nope", "-p", "x"), "--chat-template: found 'nope'"),
        (("--chat-template", "{% if %}", "-p", "x"), "chat template: TemplateSyntaxError"),
        (("--chat-template", "plain", "-p", "x", "--no-parse-special"), "--no-parse-special"),
        (("-p", "x", "--keep", "-1"), "--keep: found -1"),
        (("-p", "x", "--override-kv", "x"), "--override-kv: found 'x'"),
    ],
)
def test_bad_usage(args: tuple[str, ...], words: str) -> None:
    assert words in error_line(qllama("run", "-q", *args))
