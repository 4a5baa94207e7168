"""How text is cut into words before byte-level BPE merges within each, by `tokenizer.ggml.pre`.

The rules are llama.cpp's: where it departs from a model's own (gpt-4o and its like know the case of ASCII
letters only), so does this table. What becomes of the words is left to bpe.py.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any


@dataclass(frozen=True)
class PreTokenizer:
    """The rule of a family of vocabularies, and what else its name stands for."""

    patterns: tuple[str, ...]  # each cuts the pieces that the ones before it left
    ignore_merges: bool = False  # a word that is a token is not put together by merges
    add_bos: bool = False  # where the file does not say
    clean_spaces: bool = False  # decoding drops the spaces before punctuation

    def split(self, text: str) -> list[str]:
        """`text` as words, none empty; what a pattern does not match is a word too."""
        words = [text]
        for pattern in self.patterns:
            split = _compiled(pattern).split
            words = [part for word in words for part in split(word) if part]
        return words


@cache
def _compiled(pattern: str) -> Any:
    import regex  # the standard library knows no \p{L}

    return regex.compile(f"({pattern})")


_CONTRACTION = r"'s|'t|'re|'ve|'m|'ll|'d"
_ANY_CASE = r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
_LETTERS = r"[^\r\n\pL\pN]?\pL+"
_OTHERS = r" ?[^\s\pL\pN]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
# Upper, then lower case letters. [^\PLa-z] is a letter, but none of a-z.
_CASED = r"[^\r\n\pL\pN]?(?:[^\PLa-z]*[^\PLA-Z]+|[^\PLa-z]+[^\PLA-Z]*)"

_GPT_2 = _CONTRACTION + r"| ?\pL+| ?\pN+| ?[^\s\pL\pN]+|\s+(?!\S)|\s+"
_LLAMA_3 = rf"{_ANY_CASE}|{_LETTERS}|\pN{{1,3}}|{_OTHERS}|{_SPACES}"
_QWEN_2 = rf"{_ANY_CASE}|{_LETTERS}|\pN|{_OTHERS}|{_SPACES}"
_QWEN_35 = rf"{_ANY_CASE}|[^\r\n\pL\pN]?[\pL\pM]+|\pN| ?[^\s\pL\pM\pN]+[\r\n]*|{_SPACES}"
_TEKKEN = rf"{_CASED}|\pN| ?[^\s\pL\pN]+[\r\n/]*|{_SPACES}"
_GPT_4O = rf"{_CASED}(?:{_ANY_CASE})?|\pN{{1,3}}| ?[^\s\pL\pN]+[\r\n/]*|{_SPACES}"
_DEEPSEEK_3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\pL\pP\pS]?[\pL\pM]+"
    rf"| ?[\pP\pS]+[\r\n]*|{_SPACES}"
)
_EXAONE_MOE = (
    rf"{_ANY_CASE}|[^\r\n\pL\pN]?(?:\pL\pM*(?: \pL\pM*)*)+|\pN"
    rf"| ?[^\s\pL\pN]+[\r\n/]?|{_SPACES}"
)
_BLOOM = r" ?[^(\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"

# deepseek-llm lists upper and lower case letters one by one, in fact those of an old Unicode.
_DEEPSEEK_LETTERS = (
    r"A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376"
    r"\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481"
    r"\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf"
    r"\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d"
    r"\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4"
    r"\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107"
    r"\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f"
    r"\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    r"\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17"
    r"\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb"
    r"\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
# These ranges have spaces in them, such as U+3000, which to llama.cpp are spaces like any other.
_DEEPSEEK_PUNCTUATION = r"(?:(?!\s)[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002])+"
_DEEPSEEK_CJK = r"(?:(?!\s)[\u0800-\u9fa5\uac00-\ud7ff])+"
_DEEPSEEK_3_CJK = r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
# By the names that files have, several on a line where they are the same rule.
_RULES = {
    "default": PreTokenizer((r"[\pP$+<=>^~|]+", _GPT_2, r"\pN+", "[0-9][0-9][0-9]"), clean_spaces=True),
    "gpt-2 phi-2 mpt olmo jais exaone4 gigachat a.x-4.0 mellum": PreTokenizer((_GPT_2,), clean_spaces=True),
    "trillion granite-docling": PreTokenizer((_GPT_2,)),
    "falcon": PreTokenizer((r"[\pP$+<=>^~|`]+", _GPT_2, "[0-9][0-9][0-9]"), clean_spaces=True),
    "starcoder refact codeshell exaone minerva-7b mellum2": PreTokenizer((r"\pN", _GPT_2), clean_spaces=True),
    "command-r smollm": PreTokenizer((r"\pN", _GPT_2)),
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2": PreTokenizer(
        (_LLAMA_3,), ignore_merges=True, add_bos=True, clean_spaces=True
    ),
    "dbrx smaug-bpe chatglm-bpe": PreTokenizer((_LLAMA_3,), clean_spaces=True),
    "glm4 glm5": PreTokenizer((_LLAMA_3,), ignore_merges=True, clean_spaces=True),
    "qwen2 deepseek-r1-qwen kormo f2llmv2 hunyuan solar-open grok-2 bailingmoe bailingmoe2 llada-moe": (
        PreTokenizer((_QWEN_2,))
    ),
    "stablelm2 megrez": PreTokenizer((_QWEN_2,), clean_spaces=True),
    "qwen35": PreTokenizer((_QWEN_35,)),
    "deepseek-llm": PreTokenizer(
        (
            r"[\r\n]",
            rf"\s?[{_DEEPSEEK_LETTERS}]+",
            rf"\s?{_DEEPSEEK_PUNCTUATION}",
            r"(?<!\s)\s+$",  # not tried again from each space of a long run
            _DEEPSEEK_CJK,
            r"\pN+",
        )
    ),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\pL+", r"\s?\pP+", _DEEPSEEK_CJK, r"\pN")),
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": PreTokenizer((r"\pN{1,3}", _DEEPSEEK_3_CJK, _DEEPSEEK_3)),
    "tekken": PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True),
    "gpt-4o llama4 kanana2 talkie minimax-m2": PreTokenizer((_GPT_4O,)),
    "seed-coder": PreTokenizer((rf"{_ANY_CASE}|{_LETTERS}|\pN| ?[^\s\pL\pN\r\n]+|{_SPACES}",)),
    "exaone-moe": PreTokenizer((_EXAONE_MOE,), clean_spaces=True),
    "minicpm5": PreTokenizer((r"\pN{1,3}", _LLAMA_3), ignore_merges=True, clean_spaces=True),
    "laguna": PreTokenizer((r"[^\n]+|[\n]+", _QWEN_2)),
    "bloom gpt3-finnish": PreTokenizer((_BLOOM,), clean_spaces=True),
    "poro-chat": PreTokenizer((_BLOOM,)),
    "viking": PreTokenizer((_BLOOM, r"\pN")),
}
PRE_TOKENIZERS = {name: rule for names, rule in _RULES.items() for name in names.split()}
