"""Chat templates by name, for files that have none, and which vocabularies tell theirs.

The prompts are those of llama.cpp under the same names (alpaca: of Stanford Alpaca; plain: the messages, one a line).
"""

from collections.abc import Callable

# A system message that has no place of its own goes before the first user's.
_SYSTEM_FIRST = """{%- set system = messages[0].content if messages and messages[0].role == 'system' else none -%}
{%- set rest = messages[1:] if system is not none else messages -%}
"""


def _first_user(before: str, after: str, system: str, answer: str) -> str:
    """A template of `before` user `after` `answer`; the first user's text begins with `system`."""
    user = f"{before} + ({system} if loop.first and system is not none else '') + m.content + {after}"
    return (
        _SYSTEM_FIRST + "{%- for m in rest -%}{{ (" + answer + ") if m.role == 'assistant' else (" + user + ") }}"
        "{%- endfor -%}"
    )


def _turns(line: str, ending: str) -> str:
    """A template of one `line` for each message, and an `ending` that asks for an answer."""
    return (
        "{%- for m in messages -%}{{ " + line + " }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ " + ending + " }}{%- endif -%}"
    )


def _roles(system: str, user: str, assistant: str, ending: str) -> str:
    """A template with an expression for the messages of each role."""
    line = f"({system}) if m.role == 'system' else ({assistant}) if m.role == 'assistant' else ({user})"
    return _turns(line, ending)


_ALPACA = (
    "{%- if not messages or messages[0].role != 'system' -%}{{ 'Below is an instruction that describes a task. Write a"
    " response that appropriately completes the request.\\n\\n' }}{%- endif -%}"
)
_LLAMA_2 = _SYSTEM_FIRST + (
    "{%- for m in rest -%}{%- if m.role == 'assistant' -%}{{ ' ' + m.content.strip() + ' ' + eos_token }}{%- else -%}"
    "{{ bos_token + '[INST] ' + ('<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n'"
    " if loop.first and system is not none else '') + m.content.strip() + ' [/INST]' }}{%- endif -%}{%- endfor -%}"
)
_DEEPSEEK_3 = _SYSTEM_FIRST + (
    "{{ bos_token }}{{ system if system is not none }}{%- for m in rest -%}{%- if m.role == 'assistant' -%}"
    "{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}{%- else -%}"
    "{{ '<｜User｜>' + m.content }}{%- endif -%}{%- endfor -%}"
)
_GEMMA = _SYSTEM_FIRST + (
    "{%- for m in rest -%}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else 'user') + '\\n'"
    " + (system.strip() + '\\n\\n' if loop.first and system is not none else '') + m.content.strip()"
    " + '<end_of_turn>\\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"
)
_V7_SYSTEM = "'[SYSTEM_PROMPT]{0}' + m.content + '[/SYSTEM_PROMPT]'"

TEMPLATES = {
    "plain": "{%- for m in messages -%}{{ m.content + '\\n' }}{%- endfor -%}",
    "alpaca": _ALPACA + _roles(
        "m.content + '\\n\\n'", "'### Instruction:\\n' + m.content + '\\n\\n'",
        "'### Response:\\n' + m.content + eos_token + '\\n\\n'", "'### Response:\\n'",
    ),
    "chatml": _turns("'<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n'", "'<|im_start|>assistant\\n'"),
    "command-r": _turns(
        "'<|START_OF_TURN_TOKEN|>' + {'system': '<|SYSTEM_TOKEN|>', 'assistant': '<|CHATBOT_TOKEN|>'}"
        ".get(m.role, '<|USER_TOKEN|>') + m.content.strip() + '<|END_OF_TURN_TOKEN|>'",
        "'<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>'",
    ),
    "deepseek": _roles(
        "m.content", "'### Instruction:\\n' + m.content + '\\n'",
        "'### Response:\\n' + m.content + '\\n<|EOT|>\\n'", "'### Response:\\n'",
    ),
    "deepseek2": _roles(
        "m.content + '\\n\\n'", "'User: ' + m.content + '\\n\\n'",
        "'Assistant: ' + m.content + '<｜end▁of▁sentence｜>'", "'Assistant:'",
    ),
    "deepseek3": _DEEPSEEK_3 + "{%- if add_generation_prompt -%}{{ '<｜Assistant｜>' }}{%- endif -%}",
    "deepseek-r1": _DEEPSEEK_3 + "{%- if add_generation_prompt -%}{{ '<｜Assistant｜><think>\\n' }}{%- endif -%}",
    "gemma": _GEMMA,
    "llama2": _LLAMA_2,
    "llama3": "{{ bos_token }}" + _turns(
        "'<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content.strip() + '<|eot_id|>'",
        "'<|start_header_id|>assistant<|end_header_id|>\\n\\n'",
    ),
    "mistral-v1": _first_user("' [INST] '", "' [/INST]'", "system + '\\n\\n'", "' ' + m.content + eos_token"),
    "mistral-v3": _first_user("'[INST] '", "'[/INST]'", "system + '\\n\\n'", "' ' + m.content.strip() + eos_token"),
    "mistral-v3-tekken": _first_user("'[INST]'", "'[/INST]'", "system + '\\n\\n'", "m.content + eos_token"),
    "mistral-v7": _roles(
        _V7_SYSTEM.format(" "), "'[INST] ' + m.content + '[/INST]'", "' ' + m.content + eos_token", "''"
    ),
    "mistral-v7-tekken": _roles(
        _V7_SYSTEM.format(""), "'[INST]' + m.content + '[/INST]'", "m.content + eos_token", "''"
    ),
    "phi3": _turns("'<|' + m.role + '|>\\n' + m.content + '<|end|>\\n'", "'<|assistant|>\\n'"),
    "phi4": _turns("'<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>'",
                   "'<|im_start|>assistant<|im_sep|>'"),
    "vicuna": _roles("m.content + '\\n\\n'", "'USER: ' + m.content + '\\n'", "'ASSISTANT: ' + m.content + '</s>\\n'",
                     "'ASSISTANT:'"),
    "zephyr": _turns("'<|' + m.role + '|>\\n' + m.content + eos_token + '\\n'", "'<|assistant|>\\n'"),
}  # fmt: skip

ALIASES = {
    "deepseek-v1": "deepseek", "deepseek-v2": "deepseek2", "deepseek-v3": "deepseek3", "tekken": "mistral-v3-tekken",
}  # fmt: skip

# Tokens that only vocabularies of one template have, all of them, and tokens that speak against it. The first counts.
_SIGNS = (
    ("llama3", "<|start_header_id|> <|end_header_id|> <|eot_id|>", ""),
    ("phi4", "<|im_start|> <|im_sep|> <|im_end|>", ""),
    ("chatml", "<|im_start|> <|im_end|>", ""),
    ("gemma", "<start_of_turn> <end_of_turn>", ""),
    ("command-r", "<|START_OF_TURN_TOKEN|> <|USER_TOKEN|> <|CHATBOT_TOKEN|>", "<|START_RESPONSE|>"),
    ("deepseek3", "<｜User｜> <｜Assistant｜>", ""),
    ("phi3", "<|user|> <|assistant|> <|end|>", "<|channel|> <|start|>"),
)


def certain(has: Callable[[str], bool], byte_pair: bool) -> str | None:
    """The template that a vocabulary must have which `has` these special tokens; None where that is open."""
    for name, signs, against in _SIGNS:
        if all(map(has, signs.split())) and not any(map(has, against.split())):
            return name
    if has("[INST]") and has("[/INST]"):
        version = "v7" if has("[SYSTEM_PROMPT]") else "v3"
        return f"mistral-{version}" + ("-tekken" if byte_pair else "")
    return None
