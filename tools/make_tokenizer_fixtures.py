#!/usr/bin/env python3
"""Makes tests/fixtures/tokenizers: small tokenizers in the forms that Llama, Mistral and Qwen checkpoints have, trained on
the text below, with what Hugging Face's `tokenizers` and jinja2 make of some texts and chats.
usage: tools/make_tokenizer_fixtures.py OUT_DIR   (needs the packages tokenizers and jinja2)"""
import datetime
import json
import pathlib
import sys

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "A river does not hurry, and yet everything is carried down to the sea.",
    "The baker opened at six; by seven the street smelled of bread, by eight there was none left.",
    "In 1987 about 12345 people lived here, and 250 boats lay in the harbour.",
    "Der Fluss fließt ruhig über die Wiesen, später schäumt er zwischen den Felsen.",
    "Le café était fermé, mais la pâtisserie d'à côté restait ouverte jusqu'à vingt heures.",
    "Река течёт медленно, и лодки стоят у берега до самого утра.",
    "河水慢慢流向大海。面包店六点开门,八点就卖完了。",
    "for (int i = 0; i < n; ++i) {\n    sum += values[i];\n}\n\nreturn sum / n;\n",
    "I'm sure they've said it's fine; we'll see what you'd do. DON'T SHOUT, they're asleep!",
] * 4

TEXTS = [
    "", " ", "a", "Hello world", " Hello world", "  two  spaces   and more ", "The river is 12345 years old.",
    "I'm sure WE'LL see; it's fine.", "tabs\tand\nlines\r\n\n  indented", "café", "cafe\u0301 au lait",
    "Å \u212b A\u030a \ufb01", "Ελληνικά and עברית", "漢字 かな ハングル 한국어", "emoji 🙂👍🏽 and \u200b zero width",
    "<s>Hello</s> there", "<|im_start|>user\nHi<|im_end|>\n", "<|begin_of_text|>Hi<|eot_id|>", "▁already there",
    "code: for(i=0;i<10;i++){x+=y[i];}", "x" * 100, "ab " * 60, "1 22 333 4444 55555", "e\u0301" * 20, "\u0301leading mark",
]

BYTES = [f"<0x{b:02X}>" for b in range(256)]
SPLIT3 = ("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
          "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+")
SPLIT1 = SPLIT3.replace("{1,3}", "")
UPPER, LOWER = "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]", "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
SPLIT_CASE = (f"[^\\r\\n\\p{{L}}\\p{{N}}]?{UPPER}*{LOWER}+|[^\\r\\n\\p{{L}}\\p{{N}}]?{UPPER}+{LOWER}*|\\p{{N}}"
              "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+")

LLAMA2_CHAT = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    "{% set first = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% else %}{% set rest = messages %}{% set first = '' %}{% endif %}"
    "{% for m in rest %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if loop.first %}{% set text = first + m['content'] %}{% else %}{% set text = m['content'] %}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + text | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + text | trim + ' ' + eos_token }}{% endif %}{% endfor %}")

LLAMA3_CHAT = (
    "{{- bos_token }}\n"
    "{%- if not date_string is defined %}\n{%- if strftime_now is defined %}\n"
    "{%- set date_string = strftime_now('%d %b %Y')[3:3] + '01 Jan 2025' %}\n{%- else %}\n"
    "{%- set date_string = '01 Jan 2025' %}\n{%- endif %}\n{%- endif %}\n"
    "{%- if not tools is defined %}\n{%- set tools = none %}\n{%- endif %}\n"
    "{%- if messages[0]['role'] == 'system' %}\n{%- set intro = messages[0]['content'] | trim %}\n"
    "{%- set messages = messages[1:] %}\n{%- else %}\n{%- set intro = '' %}\n{%- endif %}\n"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}\n"
    "{{- 'Today: ' + date_string + '\\n\\n' }}\n"
    "{%- if tools is not none %}\n{{- 'You may call:\\n' }}\n{%- for tool in tools %}\n"
    "{{- tool | tojson(indent=4) }}\n{{- '\\n\\n' }}\n{%- endfor %}\n{%- endif %}\n"
    "{{- intro + '<|eot_id|>' }}\n"
    "{%- for message in messages %}\n"
    "{%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}\n"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}\n"
    "{%- elif 'tool_calls' in message %}\n{%- set call = message.tool_calls[0].function %}\n"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n"
    "{{- '{\"name\": \"' + call.name + '\", \"parameters\": ' }}\n{{- call.arguments | tojson }}\n{{- '}<|eot_id|>' }}\n"
    "{%- else %}\n{{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}\n"
    "{%- if message.content is mapping or message.content is iterable and message.content is not string %}\n"
    "{{- message.content | tojson }}\n{%- else %}\n{{- message.content }}\n{%- endif %}\n{{- '<|eot_id|>' }}\n"
    "{%- endif %}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n{%- endif %}\n")

CHATML = (
    "{%- macro body(content) -%}{{- content if content is string else content | map(attribute='text') | join('') -}}"
    "{%- endmacro -%}\n"
    "{%- if tools %}\n{{- '<|im_start|>system\\n' }}\n"
    "{%- if messages[0].role == 'system' %}\n{{- messages[0].content + '\\n\\n' }}\n{%- endif %}\n"
    "{{- '# Functions\\n<tools>' }}\n{%- for tool in tools %}\n{{- '\\n' }}\n{{- tool | tojson }}\n{%- endfor %}\n"
    "{{- '\\n</tools><|im_end|>\\n' }}\n"
    "{%- elif messages[0].role == 'system' %}\n{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}\n{%- endif %}\n"
    "{%- set ns = namespace(searching=true, last=messages|length - 1) %}\n"
    "{%- for message in messages[::-1] %}\n{%- set index = (messages|length - 1) - loop.index0 %}\n"
    "{%- if ns.searching and message.role == 'user' and message.content is string and not "
    "(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}\n"
    "{%- set ns.searching = false %}\n{%- set ns.last = index %}\n{%- endif %}\n{%- endfor %}\n"
    "{%- for message in messages %}\n"
    "{%- if (message.role == 'user') or (message.role == 'system' and not loop.first) %}\n"
    "{{- '<|im_start|>' + message.role + '\\n' + body(message.content) + '<|im_end|>' + '\\n' }}\n"
    "{%- elif message.role == 'assistant' %}\n{%- set content = body(message.content) %}\n{%- set thought = '' %}\n"
    "{%- if message.reasoning_content is defined and message.reasoning_content is not none %}\n"
    "{%- set thought = message.reasoning_content %}\n"
    "{%- elif '</think>' in content %}\n"
    "{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}\n"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}\n{%- endif %}\n"
    "{{- '<|im_start|>assistant\\n' }}\n"
    "{%- if loop.index0 > ns.last and (loop.last or thought) %}\n"
    "{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}\n{%- endif %}\n{{- content }}\n"
    "{%- for call in message.tool_calls or [] %}\n{%- if (loop.first and content) or (not loop.first) %}\n{{- '\\n' }}\n{%- endif %}\n"
    "{%- set call = call.function if call.function else call %}\n"
    "{{- '<tool_call>\\n{\"name\": \"' ~ call.name ~ '\", \"arguments\": ' }}\n"
    "{%- if call.arguments is string %}\n{{- call.arguments }}\n{%- else %}\n{{- call.arguments | tojson }}\n{%- endif %}\n"
    "{{- '}\\n</tool_call>' }}\n{%- endfor %}\n{{- '<|im_end|>\\n' }}\n"
    "{%- elif message.role == 'tool' %}\n"
    "{%- if loop.first or (messages[loop.index0 - 1].role != 'tool') %}\n{{- '<|im_start|>user' }}\n{%- endif %}\n"
    "{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}\n"
    "{%- if loop.last or (messages[loop.index0 + 1].role != 'tool') %}\n{{- '<|im_end|>\\n' }}\n{%- endif %}\n"
    "{%- endif %}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n{{- '<|im_start|>assistant\\n' }}\n"
    "{%- if enable_thinking is defined and enable_thinking is false %}\n{{- '<think>\\n\\n</think>\\n\\n' }}\n{%- endif %}\n{%- endif %}\n")

MISTRAL_CHAT = (
    "{%- if messages[0]['role'] == 'system' %}\n    {%- set system = messages[0]['content'] %}\n"
    "    {%- set rest = messages[1:] %}\n{%- else %}\n    {%- set rest = messages %}\n{%- endif %}\n"
    "{%- if not tools is defined %}\n    {%- set tools = none %}\n{%- endif %}\n"
    "{%- set asked = rest | selectattr('role', 'equalto', 'user') | list %}\n\n"
    "{#- Turns alternate; calls of tools and their results are not counted. #}\n"
    "{%- set ns = namespace() %}\n{%- set ns.index = 0 %}\n"
    "{%- for message in rest %}\n"
    "    {%- if not (message.role == 'tool' or message.role == 'tool_results' or (message.tool_calls is defined and message.tool_calls is not none)) %}\n"
    "        {%- if (message['role'] == 'user') != (ns.index % 2 == 0) %}\n"
    "            {{- raise_exception('user and assistant must take turns') }}\n        {%- endif %}\n"
    "        {%- set ns.index = ns.index + 1 %}\n    {%- endif %}\n{%- endfor %}\n\n"
    "{{- bos_token }}\n"
    "{%- for message in rest %}\n"
    "    {%- if message['role'] == 'user' %}\n"
    "        {%- if tools is not none and (message == asked[-1]) %}\n"
    "            {{- '[AVAILABLE_TOOLS][' }}\n"
    "            {%- for tool in tools %}\n"
    "                {%- set tool = tool.function %}\n"
    "                {{- '{\"type\": \"function\", \"function\": {' }}\n"
    "                {%- for key, val in tool.items() if key != 'return' %}\n"
    "                    {%- if val is string %}\n                        {{- '\"' + key + '\": \"' + val + '\"' }}\n"
    "                    {%- else %}\n                        {{- '\"' + key + '\": ' + val|tojson }}\n                    {%- endif %}\n"
    "                    {%- if not loop.last %}\n                        {{- ', ' }}\n                    {%- endif %}\n"
    "                {%- endfor %}\n                {{- '}}' }}\n"
    "                {%- if not loop.last %}\n                    {{- ', ' }}\n"
    "                {%- else %}\n                    {{- ']' }}\n                {%- endif %}\n"
    "            {%- endfor %}\n            {{- '[/AVAILABLE_TOOLS]' }}\n        {%- endif %}\n"
    "        {%- if loop.last and system is defined %}\n"
    "            {{- '[INST]' + system + '\\n\\n' + message['content'] + '[/INST]' }}\n"
    "        {%- else %}\n            {{- '[INST]' + message['content'] + '[/INST]' }}\n        {%- endif %}\n"
    "    {%- elif message.tool_calls is defined and message.tool_calls is not none %}\n"
    "        {{- '[TOOL_CALLS][' }}\n"
    "        {%- for call in message.tool_calls %}\n"
    "            {%- set out = call.function|tojson %}\n            {{- out[:-1] }}\n"
    "            {%- if not call.id is defined or call.id|length != 9 %}\n"
    "                {{- raise_exception('a call has an id of nine characters') }}\n            {%- endif %}\n"
    "            {{- ', \"id\": \"' + call.id + '\"}' }}\n"
    "            {%- if not loop.last %}\n                {{- ', ' }}\n"
    "            {%- else %}\n                {{- ']' + eos_token }}\n            {%- endif %}\n        {%- endfor %}\n"
    "    {%- elif message['role'] == 'assistant' %}\n        {{- message['content'] + eos_token}}\n"
    "    {%- elif message['role'] == 'tool_results' or message['role'] == 'tool' %}\n"
    "        {%- if message.content is defined and message.content.content is defined %}\n"
    "            {%- set content = message.content.content %}\n"
    "        {%- else %}\n            {%- set content = message.content %}\n        {%- endif %}\n"
    "        {{- '[TOOL_RESULTS]{\"content\": ' + content|string + ', ' }}\n"
    "        {{- '\"call_id\": \"' + message.tool_call_id + '\"}[/TOOL_RESULTS]' }}\n"
    "    {%- else %}\n        {{- raise_exception('only system, user, assistant and tool speak') }}\n"
    "    {%- endif %}\n{%- endfor %}\n")

TOOL = {"type": "function", "function": {"name": "weather", "description": "Weather <now> & here",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}
CALL = {"role": "assistant", "content": "", "tool_calls": [
    {"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln", "days": [1, 2.5, True, None]}}}]}
PLAIN = [{"role": "user", "content": " Who are you? "}]
TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "4"}, {"role": "user", "content": "And 3+3?"}]
THOUGHT = [{"role": "user", "content": "Hm?"}, {"role": "assistant", "content": "<think>\nlet me see\n</think>\n\nYes."},
           {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "", "reasoning_content": "\nstill yes\n"}]
TOOLS = [{"role": "user", "content": "Weather in Köln?"}, CALL, {"role": "tool", "content": "rain"},
         {"role": "tool", "content": "wind"}]
CALLED = [{"role": "user", "content": "Weather in Köln?"},
          {"role": "assistant", "content": "", "tool_calls": [dict(CALL["tool_calls"][0], id="abcDEF123")]},
          {"role": "tool", "content": 21.5, "tool_call_id": "abcDEF123"},
          {"role": "assistant", "content": "21.5 degrees."}, {"role": "user", "content": "And tomorrow?"}]


def train(tokenizer, size, special, alphabet):
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False))


def sentencepiece(metaspace):
    prepare = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.normalizer = normalizers.Sequence(prepare)
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # for training; files of this form have none
    train(trained, 600, ["<unk>", "<s>", "</s>"] + BYTES, [])
    model = json.loads(trained.to_str())["model"]
    # Characters that are rare stay out, so that bytes are needed.
    vocab = {t: i for t, i in model["vocab"].items()}
    t = Tokenizer(models.BPE(vocab=vocab, merges=[tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]],
                             unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if metaspace:
        t.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    else:
        t.normalizer = normalizers.Sequence(prepare)
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    t.add_special_tokens([AddedToken(x, normalized=False, special=True) for x in ("<unk>", "<s>", "</s>")])
    t.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", t.token_to_id("<s>"))])
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>",
              "eos_token": "</s>", "unk_token": "<unk>", "legacy": not metaspace, "chat_template": LLAMA2_CHAT}
    return t, config, [(PLAIN, {}), (TALK, {})]


def byte_level(split, normalizer, special, post, config, chats, ignore_merges=False):
    t = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    t.normalizer = normalizer
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    train(t, 700, [], pre_tokenizers.ByteLevel.alphabet())
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens([AddedToken(x, special=True, normalized=False) for x in special])
    t.post_processor = post(t)
    return t, config, chats


MISTRAL_SPECIAL = ["[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"]
MISTRAL_CHATS = [(PLAIN, {}), (TALK, {}), (CALLED, {"tools": [TOOL, TOOL]})]


def mistral():
    t, config, _ = sentencepiece(True)
    t.add_special_tokens([AddedToken(x, normalized=False, special=True) for x in MISTRAL_SPECIAL])
    return t, dict(config, chat_template=MISTRAL_CHAT), MISTRAL_CHATS


def mistral_bytes():
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>",
              "unk_token": "<unk>", "chat_template": MISTRAL_CHAT}
    post = lambda t: processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", t.token_to_id("<s>"))])
    return byte_level(SPLIT_CASE, None, ["<unk>", "<s>", "</s>"] + MISTRAL_SPECIAL, post, config, MISTRAL_CHATS, ignore_merges=True)


def llama3():
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    post = lambda t: processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(
        single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|> $B",
        special_tokens=[("<|begin_of_text|>", t.token_to_id("<|begin_of_text|>"))])])
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>",
              "chat_template": LLAMA3_CHAT}
    return byte_level(SPLIT3, None, special, post, config,
                      [(PLAIN, {}), (TALK, {"date_string": "26 Jul 2024"}), (TOOLS, {"tools": [TOOL]})], ignore_merges=True)


def qwen():
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    config = {"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False, "add_prefix_space": False, "bos_token": None,
              "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None, "chat_template": CHATML}
    return byte_level(SPLIT1, normalizers.NFC(), special, lambda t: processors.ByteLevel(add_prefix_space=False, use_regex=False),
                      config, [(PLAIN, {}), (PLAIN, {"enable_thinking": False}), (TALK, {}), (THOUGHT, {}), (TOOLS, {"tools": [TOOL]})])


def render(template, messages, variables, config):
    def raise_exception(message):
        raise ValueError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    tokens = {k: v for k, v in config.items() if k.endswith("_token") and v and isinstance(v, str)}
    return env.from_string(template).render(messages=messages, add_generation_prompt=True, **{**tokens, **variables})


def main():
    out = pathlib.Path(sys.argv[1])
    for name, (t, config, chats) in {"llama2": sentencepiece(False), "llama2_metaspace": sentencepiece(True),
                                     "llama3": llama3(), "mistral": mistral(), "mistral_bytes": mistral_bytes(), "qwen": qwen()}.items():
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(json.dumps(json.loads(t.to_str()), ensure_ascii=False, separators=(",", ":")))
        (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=1))
        with open(folder / "golden_text.jsonl", "w") as f:
            for text in TEXTS:
                ids = t.encode(text, add_special_tokens=False).ids
                f.write(json.dumps({"text": text, "ids": ids, "with_special": t.encode(text).ids,
                                    "decoded": t.decode(ids, skip_special_tokens=False)}, ensure_ascii=False) + "\n")
        with open(folder / "golden_chat.jsonl", "w") as f:
            for messages, variables in chats:
                text = render(config["chat_template"], messages, variables, config)
                ids = t.encode(text, add_special_tokens=False).ids
                f.write(json.dumps({"messages": messages, "variables": variables, "text": text, "ids": ids},
                                   ensure_ascii=False) + "\n")


main()
