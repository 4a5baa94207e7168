"""Templates by name, and which one a model gets."""

from pathlib import Path

import pytest
from conftest import shared
from gguf_maker import LLAMA, model, write
from test_chat_render import recorded

from qllama.chat import render
from qllama.chat.named import ALIASES, TEMPLATES, certain
from qllama.chat.template import KEY, choose
from qllama.errors import InputError
from qllama.gguf import open_gguf
from qllama.tokenizer import load_tokenizer

# The conversation of llama.cpp's own template tests, and what they expect (</s> ends a text; BOS left out there).
CONVERSATION = [
    {"role": "system", "content": "You are a helpful assistant"},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi there"},
    {"role": "user", "content": "Who are you"},
    {"role": "assistant", "content": "   I am an assistant   "},
    {"role": "user", "content": "Another question"},
]
PUBLISHED = {
    "chatml": (
        "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|"
        ">assistant\nHi there<|im_end|>\n<|im_start|>user\nWho are you<|im_end|>\n<|im_start|>assistant\n   I am a"
        "n assistant   <|im_end|>\n<|im_start|>user\nAnother question<|im_end|>\n<|im_start|>assistant\n"
    ),
    "llama3": (
        "<|start_header_id|>system<|end_header_id|>\n\nYou are a helpful assistant<|eot_id|><|start_header_id|>use"
        "r<|end_header_id|>\n\nHello<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHi there<|eot_id|><"
        "|start_header_id|>user<|end_header_id|>\n\nWho are you<|eot_id|><|start_header_id|>assistant<|end_header_"
        "id|>\n\nI am an assistant<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nAnother question<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "vicuna": (
        "You are a helpful assistant\n\nUSER: Hello\nASSISTANT: Hi there</s>\nUSER: Who are you\nASSISTANT:    I a"
        "m an assistant   </s>\nUSER: Another question\nASSISTANT:"
    ),
    "mistral-v1": (
        " [INST] You are a helpful assistant\n\nHello [/INST] Hi there</s> [INST] Who are you [/INST]    I am an a"
        "ssistant   </s> [INST] Another question [/INST]"
    ),
    "mistral-v3": (
        "[INST] You are a helpful assistant\n\nHello[/INST] Hi there</s>[INST] Who are you[/INST] I am an assistan"
        "t</s>[INST] Another question[/INST]"
    ),
    "mistral-v3-tekken": (
        "[INST]You are a helpful assistant\n\nHello[/INST]Hi there</s>[INST]Who are you[/INST]   I am an assistant"
        "   </s>[INST]Another question[/INST]"
    ),
    "mistral-v7": (
        "[SYSTEM_PROMPT] You are a helpful assistant[/SYSTEM_PROMPT][INST] Hello[/INST] Hi there</s>[INST] Who are"
        " you[/INST]    I am an assistant   </s>[INST] Another question[/INST]"
    ),
    "phi3": (
        "<|system|>\nYou are a helpful assistant<|end|>\n<|user|>\nHello<|end|>\n<|assistant|>\nHi there<|end|>\n<"
        "|user|>\nWho are you<|end|>\n<|assistant|>\n   I am an assistant   <|end|>\n<|user|>\nAnother question<|e"
        "nd|>\n<|assistant|>\n"
    ),
    "phi4": (
        "<|im_start|>system<|im_sep|>You are a helpful assistant<|im_end|><|im_start|>user<|im_sep|>Hello<|im_end|"
        "><|im_start|>assistant<|im_sep|>Hi there<|im_end|><|im_start|>user<|im_sep|>Who are you<|im_end|><|im_sta"
        "rt|>assistant<|im_sep|>   I am an assistant   <|im_end|><|im_start|>user<|im_sep|>Another question<|im_en"
        "d|><|im_start|>assistant<|im_sep|>"
    ),
    "gemma": (
        "<start_of_turn>user\nYou are a helpful assistant\n\nHello<end_of_turn>\n<start_of_turn>model\nHi there<en"
        "d_of_turn>\n<start_of_turn>user\nWho are you<end_of_turn>\n<start_of_turn>model\nI am an assistant<end_of"
        "_turn>\n<start_of_turn>user\nAnother question<end_of_turn>\n<start_of_turn>model\n"
    ),
    "command-r": (
        "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>You are a helpful assistant<|END_OF_TURN_TOKEN|><|START_OF_TURN_TO"
        "KEN|><|USER_TOKEN|>Hello<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>Hi there<|END_OF_TUR"
        "N_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Who are you<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CH"
        "ATBOT_TOKEN|>I am an assistant<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Another question<"
        "|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
    ),
    "deepseek": (
        "You are a helpful assistant### Instruction:\nHello\n### Response:\nHi there\n<|EOT|>\n### Instruction:\nW"
        "ho are you\n### Response:\n   I am an assistant   \n<|EOT|>\n### Instruction:\nAnother question\n### Resp"
        "onse:\n"
    ),
    "deepseek2": (
        "You are a helpful assistant\n\nUser: Hello\n\nAssistant: Hi there<｜end▁of▁sentence｜>User: Who are you\n\n"
        "Assistant:    I am an assistant   <｜end▁of▁sentence｜>User: Another question\n\nAssistant:"
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_prompts_that_llama_cpp_expects(name: str) -> None:
    assert render(TEMPLATES[name], CONVERSATION, bos_token="", eos_token="</s>") == PUBLISHED[name]


# Models whose own template says the same as ours, in what was recorded from transformers; None: not for that row.
OWN = {
    "chatml": ("Bielik-11B-v3.0-Instruct", ("user", "system_user", "multi")),
    "phi3": ("microsoft-Phi-3.5-mini-instruct", ("user", "system_user", "multi")),
    "deepseek-r1": ("deepseek-ai-DeepSeek-R1-Distill-Llama-8B", ("user", "system_user", "multi")),
    "gemma": ("google-gemma-2-2b-it", ("user",)),
    "mistral-v3-tekken": ("mistralai-Mistral-Nemo-Instruct-2407", ("user", "system_user")),
    "mistral-v7-tekken": ("Mistral-Small-3.2-24B-Instruct-2506", ("system_user", "multi")),
}


@pytest.mark.parametrize("name", OWN)
def test_prompts_of_models_own_templates(name: str) -> None:
    file, conversations = OWN[name]
    rows = [
        row
        for row in recorded()["templates"][f"{file}.jinja"]["rows"]
        if row["conv"] in conversations and row["add_generation_prompt"]
    ]
    assert len(rows) == len(conversations)
    for row in rows:
        messages = next(c for c in recorded()["conversations"] if c["name"] == row["conv"])["messages"]
        # A BOS that the template leaves out is added with the ids.
        ours = render(TEMPLATES[name], messages, bos_token="<BOS>", eos_token="<EOS>").removeprefix("<BOS>")
        assert ours == row["out"].removeprefix("<BOS>")


def test_llama_2_and_deepseek_3_begin_with_bos() -> None:
    """Meta's: https://llama.com/docs/model-cards-and-prompt-formats/meta-llama-2/ ; DeepSeek-V3's without <think>."""
    rendered = {
        name: render(TEMPLATES[name], CONVERSATION, bos_token="<s>", eos_token="</s>")
        for name in ("llama2", "deepseek3")
    }
    assert rendered["llama2"] == (
        "<s>[INST] <<SYS>>\nYou are a helpful assistant\n<</SYS>>\n\nHello [/INST] Hi there </s>"
        "<s>[INST] Who are you [/INST] I am an assistant </s><s>[INST] Another question [/INST]"
    )
    assert rendered["deepseek3"] == (
        "<s>You are a helpful assistant<｜User｜>Hello<｜Assistant｜>Hi there<｜end▁of▁sentence｜><｜User｜>Who are you"
        "<｜Assistant｜>   I am an assistant   <｜end▁of▁sentence｜><｜User｜>Another question<｜Assistant｜>"
    )


def test_alpaca_zephyr_and_plain() -> None:
    """Stanford Alpaca's prompt without an input; Zephyr's from its model card; lines."""
    hello = CONVERSATION[1:2]
    assert render(TEMPLATES["alpaca"], hello, eos_token="</s>") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nHello\n\n### Response:\n"
    )
    assert render(TEMPLATES["alpaca"], CONVERSATION[:4], eos_token="</s>") == (
        "You are a helpful assistant\n\n### Instruction:\nHello\n\n### Response:\nHi there</s>\n\n"
        "### Instruction:\nWho are you\n\n### Response:\n"
    )
    assert render(TEMPLATES["zephyr"], CONVERSATION[:2], eos_token="</s>") == (
        "<|system|>\nYou are a helpful assistant</s>\n<|user|>\nHello</s>\n<|assistant|>\n"
    )
    assert render(TEMPLATES["plain"], CONVERSATION[1:3]) == "Hello\nHi there\n"


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_says_everything_once(name: str) -> None:
    text = render(TEMPLATES[name], CONVERSATION, bos_token="<s>", eos_token="</s>")
    for message in CONVERSATION:
        assert text.count(message["content"].strip()) == 1
    without_answer = render(TEMPLATES[name], CONVERSATION[:2], bos_token="", eos_token="", add_generation_prompt=False)
    assert "Hello" in without_answer


# Which template a vocabulary tells.
VOCABULARIES = {
    "llama-bpe": "llama3", "qwen2": "chatml", "qwen35": "chatml", "command-r": "command-r", "phi-3": "phi3",
    "llama-spm": None, "gpt-2": None, "falcon": None, "starcoder": None, "deepseek-llm": None, "deepseek-coder": None,
}  # fmt: skip


@pytest.mark.parametrize("name", VOCABULARIES)
def test_what_the_vocabulary_tells(name: str) -> None:
    with open_gguf(shared(f"vocabs/ggml-vocab-{name}.gguf")) as gguf:
        byte_pair = gguf.metadata.text("tokenizer.ggml.model") == "gpt2"
        special_id = load_tokenizer(gguf.metadata).special_id
        assert certain(lambda sign: special_id(sign) is not None, byte_pair) == VOCABULARIES[name]


def test_without_a_template_the_vocabulary_tells_or_the_user_must() -> None:
    told = template_of(shared("vocabs/ggml-vocab-llama-bpe.gguf"))
    assert told.source == TEMPLATES["llama3"] and told.origin == "llama3, by the vocabulary"
    assert (told.bos_token, told.eos_token) == ("<|begin_of_text|>", "<|end_of_text|>")
    with pytest.raises(InputError, match=r"has no chat template .* choose one with --chat-template, of plain, alpaca,"):
        template_of(shared("vocabs/ggml-vocab-llama-spm.gguf"))


def test_signs_of_vocabularies_that_are_not_at_hand() -> None:
    def told(tokens: str, byte_pair: bool = True) -> str | None:
        return certain(tokens.split().__contains__, byte_pair)

    assert told("<bos> <start_of_turn> <end_of_turn>") == "gemma"
    assert told("<｜User｜> <｜Assistant｜> <think>") == "deepseek3"
    assert told("<|im_start|> <|im_end|> <|im_sep|>") == "phi4"
    assert told("[INST] [/INST] [TOOL_CALLS]") == "mistral-v3-tekken"
    assert told("[INST] [/INST] [TOOL_CALLS]", byte_pair=False) == "mistral-v3"
    assert told("[INST] [/INST] [SYSTEM_PROMPT]") == "mistral-v7-tekken"
    assert told("[INST] [/INST] [SYSTEM_PROMPT]", byte_pair=False) == "mistral-v7"
    assert told("<|user|> <|assistant|> <|end|> <|start|> <|channel|>") is None
    assert told("<|im_start|>") is None


def template_of(path: Path, wished: str | None = None):
    with open_gguf(path) as gguf:
        return choose(gguf.metadata, load_tokenizer(gguf.metadata), wished)


VOCABULARY = LLAMA | {
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *[f"<0x{b:02X}>" for b in range(256)]],
    "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256],
    "tokenizer.ggml.scores": [0.0] * 259,
}


def test_the_files_own_template_comes_first_and_the_users_before_it(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", model(VOCABULARY | {KEY: "{{ bos_token }}own", f"{KEY}.tool_use": "tools"}))
    own = template_of(path)
    assert own.origin == "the model's own" and own.render([]) == "<s>own"
    assert own.render([], tools=[{}]) == "tools"
    assert template_of(path, "zephyr").source == TEMPLATES["zephyr"]
    assert template_of(path, "deepseek-v2").source == TEMPLATES[ALIASES["deepseek-v2"]]
    assert template_of(path, "{{ eos_token }}!").render([]) == "</s>!"
    with pytest.raises(InputError, match=r"--chat-template: found 'nope', needed the text of a template or one of"):
        template_of(path, "nope")


def test_templates_of_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer.chat_template=5: is u32, must be a string"):
        template_of(write(tmp_path / "u32.gguf", model(VOCABULARY | {KEY: 5})))
    bad = template_of(write(tmp_path / "bytes.gguf", model(VOCABULARY | {KEY: ("str", b"a\xffb")})))
    assert bad.render([]) == "a\ufffdb"
    assert bad.warnings and bad.warnings[0].endswith("is not UTF-8, what is wrong is replaced by U+FFFD")
    with pytest.raises(InputError, match="must have at most 1048576"):
        template_of(write(tmp_path / "long.gguf", model(VOCABULARY | {KEY: "x" * (10 << 20)}))).render([])
