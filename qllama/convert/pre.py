"""Which rule a byte-level BPE tokenizer cuts words by, told from what it makes of one text.

The text and the hashes of its token ids are those by which llama.cpp's converter knows vocabularies; they are facts of
the format, as the names of the rules are (tokenizer/pre.py).
"""

import hashlib
from collections.abc import Sequence

TEXT = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n\U0001f680 (normal) \U0001f636\u200d\U0001f32b\ufe0f (multi"
    "ple emojis concatenated) \u2705 \U0001f999\U0001f999 3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3."
    "..3 \u1780\u17b6\u1793\u17cb\u178f\u17c2\u1796\u17b7\u179f\u17c1\u179f\u17a2\u17b6\u1785\U0001f601 ?\u6211"
    "\u60f3\u5728apple\u5de5\u4f5c1314151\u5929\uff5e ------======= \u043d\u0435\u0449\u043e \u043d\u0430 \u0411"
    "\u044a\u043b\u0433\u0430\u0440\u0441\u043a\u0438 ''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he'"
    "s there, 'RE you sure? 'M not sure I'll make it, 'D you like some tea? We'Ve a'lL"
)

# The first 16 digits of the SHA-256 of the ids as Python prints a list.
_TABLE = """
chatglm-bpe b6e8e1518dc4305b 81d72c7348a9f0eb|glm4 a1336059768a55c9 9ca2dd618e8afaf0 cdf5f35325780597
minerva-7b 1431a23e583c9743|hunyuan 7e57df22b1fe23a7|hunyuan-dense bba3b3366b646dbd|hy_v4 e6ddf9c6686791c1
falcon-h1 a6b57017d60e6edb 60476e1243776c4f 3eda48b4c4dc7de7 48f8e02c0359c0bb|qwen2 d4540891389ea895 e636dc30a262dcc0
qwen35 1444df51289cfa80 d30d75d9059f1aa2|grok-2 66b8d4e19ab16c3b|gpt-2 0fe1cf6eda062318 3ce83efda5659b07
lfm2 9e454714343b69b9 169bf0296a13c4d9|llama-bpe 0ef9807a4087ebef|deepseek-llm 049ecf7629871e30
deepseek-coder 347715f544604f91|falcon 8aeee3860c56296a|falcon3 9d032fcbd5501f4a|olmo b6dc8df998e1cfbd
starcoder 35d91631860c815f|stablelm2 32d85c31273f8019|refact 6221ad2852e85ce9|command-r 9c2227e4dd922002
dbrx a8594e3edff7c29c|smaug-bpe c136ed14d01c2745|poro-chat c7ea5862a53e4272|viking 7fc505bd3104ca10
jais b53802fb28e26d64|codeshell 7b3e7548e4308f52|tekken 63b97e4253352e6f|smollm 855059429035d75a
bloom 3c30d3ad1d6b6420|gpt3-finnish bc01ce58980e1db4|exaone 4e2b24cc4770243d|phi-2 fcace8b9cac38ce8
gigachat ad851be1dba641f2|megrez d4c8f286ea6b520b|deepseek-v3 877081d19cf6996e|deepseek-r1-qwen b3f499bb4255f8ca
gpt-4o ccc2ef013c104be7|trillion 1994ffd01900cfb3|bailingmoe 96a5f08be6259352|llama4 d353350c764d8c3b
pixtral 0e9433cbbb161f89|seed-coder d5f1dd6f980fec56|a.x-4.0 b0a6b1c0bd5998eb|midm-2.0 f6791d196f87ce6b
exaone4 2085e1638f6c377a|mellum a1e163ecab2e718a|bailingmoe2 9b1be57e70d20d95|granite-docling 53e325976a6e1423
minimax-m2 f4f37b6c8eb9ea29|kormo 4a2e2abae11ca2b8|solar-open 16389f0a1f51ee53|exaone-moe 6c81ce329e080288
joyai-llm b4b8ca1f9769494f|kanana2 e4d54df1ebc1f2b9|f2llmv2 862f827721df9560|talkie f728162c1315c26e
minicpm5 36f3066e97b7f399|mellum2 9dcf830ee9990cdb|laguna 972da7b59cec44d1
"""
_ROWS = [row.split() for row in _TABLE.replace("\n", "|").split("|") if row]
KNOWN = {digest: name for name, *digests in _ROWS for digest in digests}


def fingerprint(ids: Sequence[int]) -> str:
    """The key in KNOWN of a tokenizer that makes `ids` of TEXT, special tokens included."""
    return hashlib.sha256(str(list(ids)).encode()).hexdigest()[:16]
