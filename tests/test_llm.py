"""Text in, text out: published texts, streaming, stopping, the token loop's limits."""

import pytest
from conftest import shared
from quant_files import requantized

import qllama
from qllama.errors import InputError
from qllama.generate import Stats
from qllama.llm import LLM, _until

# What the author of stories260K published as its greedy text (karpathy/llama2.c), and the tinyllamas' README shows.
PUBLISHED = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a"
    " big, red ball. She wanted to play with it, but it was too high.\n"
    "Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do. She said, \"I want to"
    " play with your ball, but I can't find it.\"\n"
    "Lily was sad and didn't know what to do. She said, \"I'm sorry, Lily. I didn't know what to do.\"\n"
    "Lily didn't want to help her mom, so she"
)


@pytest.fixture(scope="module")
def stories():
    llm = LLM(shared("models/stories260K-f32.gguf"), n_threads=2)
    yield llm
    llm.close()


def test_greedy_text_is_the_published_one(stories: LLM) -> None:
    assert "".join(stories.generate("", n_predict=200, temp=0)) == PUBLISHED


def test_text_that_continues_a_prompt_keeps_its_first_space(stories: LLM) -> None:
    pieces = list(stories.generate("Once upon a time, there was a little girl named", n_predict=3, temp=0))
    assert "".join(pieces) == " Lily. She"
    assert len(pieces) == 3


def test_llm_is_reached_from_the_package() -> None:
    assert qllama.LLM is LLM
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        qllama.nothing  # noqa: B018


def test_eval_gives_logits_after_every_token(stories: LLM) -> None:
    ids = stories.tokenize("Once upon a time")
    logits = stories.eval(ids)
    assert logits.shape == (len(ids), 512) and logits.dtype == "float32"
    assert stories.detokenize(ids) == "Once upon a time"
    assert stories.detokenize([int(logits[-1].argmax())], special=True) == ","


def test_a_seed_repeats_its_text_and_another_differs(stories: LLM) -> None:
    one, again, other = ("".join(stories.generate("Tom", n_predict=40, seed=s)) for s in (5, 5, 6))
    assert one == again != other


def test_stop_text_ends_before_itself_even_across_pieces(stories: LLM) -> None:
    for stop in ("Lily", " girl named L", ". She loved", "e"):
        stats = Stats()
        text = "".join(stories.generate("", n_predict=200, stop=[stop], temp=0, stats=stats))
        assert text == PUBLISHED[: PUBLISHED.index(stop)]
        assert stats.finish_reason == "stop"


def test_held_back_text_comes_out_when_the_stop_does_not() -> None:
    pieces = ["a", "b", "ab", "x", "ab"]
    assert list(_until(iter(pieces), ("abc",), Stats())) == ["ab", "abx", "ab"]
    assert "".join(_until(iter("aab"), ("ab", "aab"), Stats())) == ""


def test_limits_and_reasons(stories: LLM) -> None:
    stats = Stats()
    assert list(stories.generate("", n_predict=0, stats=stats)) == []
    assert stats.finish_reason == "length"
    text = "".join(stories.generate("One", temp=0, ignore_eos=True, stats=stats))
    assert stats.finish_reason == "length" and stats.n_prompt + stats.n_generated == stories.n_ctx + 1
    assert len(text) > 500
    assert stats.prompt_seconds > 0 and stats.generation_seconds > 0 and stats.first_token_seconds > 0


def test_an_end_token_ends_the_text(stories: LLM) -> None:
    stats = Stats()
    eos = stories.tokenizer.eos
    list(stories.generate("One", n_predict=9, logit_bias={eos: 1e9}, stats=stats))
    assert (stats.finish_reason, stats.n_generated) == ("stop", 0)
    list(stories.generate("One", n_predict=9, logit_bias={eos: 1e9}, ignore_eos=True, stats=stats))
    assert (stats.finish_reason, stats.n_generated) == ("length", 9)


def test_a_prompt_longer_than_the_context_is_refused_before_computing(stories: LLM) -> None:
    with pytest.raises(InputError, match=r"the prompt has .* tokens, the context of 512 leaves no room"):
        list(stories.generate("word " * 600, n_predict=1))


def test_bad_sampling_values_are_refused_at_the_call(stories: LLM) -> None:
    with pytest.raises(InputError, match="--top-p"):
        stories.generate("a", top_p=2.0)


def test_kinds_of_cache(stories: LLM) -> None:
    with pytest.raises(InputError, match="type_v=q4_0: the KV cache can be f16, f32, q8_0"):
        LLM(shared("models/stories260K-f32.gguf"), type_v="q4_0")
    with pytest.raises(InputError, match="type_k=q8_0: needs heads that are a multiple of 32 wide, these are 8"):
        LLM(shared("models/stories260K-f32.gguf"), type_k="q8_0")
    exact = LLM(shared("models/stories260K-f32.gguf"), type_k="f32", type_v="f32")
    assert (
        "".join(exact.generate("", n_predict=60, temp=0))
        == PUBLISHED[: len("".join(stories.generate("", n_predict=60, temp=0)))]
    )
    exact.close()


def test_printed_plan(stories: LLM) -> None:
    assert "norm.rms_f32" in str(stories.plan)


def test_q8_0_text_parts_only_where_the_model_is_undecided(tmp_path) -> None:
    """Greedy text of the Q8_0 version: equal until two tokens are closer than the rounding moves logits."""
    exact = LLM(shared("models/stories260K-f32.gguf"), n_threads=2)
    rounded = LLM(requantized(shared("models/stories260K-f32.gguf"), "Q8_0", tmp_path / "q8_0.gguf"), n_threads=2)
    ids = [exact.tokenizer.bos]
    for position in range(200):
        logits = exact.model.forward(ids[-1:], position)[0]
        other = rounded.model.forward(ids[-1:], position)[0]
        first, second = sorted(logits)[:-3:-1]
        if other.argmax() != logits.argmax():
            moved = abs(other - logits).max()
            assert first - second < 2 * moved and moved < 0.5
            break
        ids.append(int(logits.argmax()))
    assert len(ids) > 50
    exact.close()
    rounded.close()
