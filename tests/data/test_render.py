"""Rendering equals transformers' token for token; special tokens, plain texts, decoding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

from reinforge.data.render import Renderer
from reinforge.types import Example

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The shapes of Qwen 2.5's and Llama 3's own templates: default system prompt, tools as JSON, trimming, dates.
QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are a helpful assistant.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last_query=messages|length - 1) %}
{%- for message in messages %}
    {%- if message.role == "system" and loop.first %}
        {%- continue %}
    {%- endif %}
    {%- if message.tool_calls %}
        {{- '<|im_start|>assistant\\n' + (message.content or '') }}
        {%- for call in message.tool_calls %}
            {{- '<tool_call>' + (call.function | tojson) + '</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>assistant\\n' }}{% generation %}{{- message.content }}{% endgeneration %}{{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAMA3 = """{{- bos_token }}
{%- set date_string = strftime_now("%d %b %Y") %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" }}
{{- system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role not in ['user', 'assistant', 'tool'] %}
        {{- raise_exception("Unknown role: " + message.role) }}
    {%- endif %}
    {%- if loop.first and tools is not none %}
        {{- "<|start_header_id|>user<|end_header_id|>\\n\\nGiven the functions:\\n" }}
        {%- for t in tools %}
            {{- t | tojson(indent=4) }}
            {{- "\\n\\n" }}
        {%- endfor %}
        {{- message['content'] | trim + "<|eot_id|>"}}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
SPECIAL = {
    "chatml": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "qwen": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "llama3": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
}
TEMPLATES = {"chatml": CHATML, "qwen": QWEN, "llama3": LLAMA3}
CORPUS = [
    "You are a helpful assistant. Use the tools. Today Date: 26 Jul 2024",
    "What is 12 + 34? Größe 🙂 naïve\n\n",
] * 20
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds <a> & 'b'",
        "parameters": {"type": "object", "properties": {"a": {"type": "number", "default": None}}},
    },
}


def write_tokenizer(folder: Path, family: str, **settings: Any) -> Path:
    """A byte-level BPE with a few merges, saved as the hub's models are."""
    special = SPECIAL[family]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    named = {"eos_token": special[-1], "pad_token": special[0]}
    if family == "llama3":
        named = {"bos_token": special[0], "eos_token": "<|eot_id|>"}
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{special[0]} $A", pair=f"{special[0]} $A $B", special_tokens=[(special[0], 0)]
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATES[family], **named, **settings}
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: write_tokenizer(tmp_path_factory.mktemp(family), family) for family in TEMPLATES}


@pytest.fixture(scope="module")
def qwen(folders: dict[str, Path]) -> Renderer:
    return Renderer.from_folder(folders["qwen"])


CONVERSATIONS: list[tuple[dict[str, Any], ...]] = [
    ({"role": "user", "content": "What is 12 + 34?"},),
    ({"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Größe 🙂 <|im_end|> \n"}),
    (
        {"role": "system", "content": "Sums"},
        {"role": "user", "content": "1+1"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "and {{ 2 }} + 2?  "},
    ),
]


@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("tools", [(), (TOOL,), (TOOL, {"name": "Ünï"})])
def test_equals_transformers(folders, family, messages, tools):
    from transformers import AutoTokenizer

    if tools and family == "chatml":
        pytest.skip("the plain ChatML template shows no tools")
    theirs = AutoTokenizer.from_pretrained(folders[family]).apply_chat_template(
        [dict(message) for message in messages],
        tools=list(tools) or None,
        tokenize=True,
        add_generation_prompt=True,
        return_dict=False,
    )
    ours = Renderer.from_folder(folders[family]).prompt(Example(0, messages, tools=tools))
    assert list(ours.token_ids) == theirs


def test_equals_transformers_with_a_tool_call_in_the_conversation(folders, qwen):
    from transformers import AutoTokenizer

    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = (
        {"role": "user", "content": "1+1"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2"},
    )
    theirs = AutoTokenizer.from_pretrained(folders["qwen"]).apply_chat_template(
        [dict(m) for m in messages], tools=[TOOL], add_generation_prompt=True, return_dict=False
    )
    assert list(qwen.prompt(Example(0, messages, tools=(TOOL,))).token_ids) == theirs


@pytest.mark.parametrize("model", ["tiny_qwen2", "tiny_llama"])
def test_equals_transformers_on_saved_models(model, request):
    from transformers import AutoTokenizer

    folder = request.getfixturevalue(model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    theirs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1+1?"}], add_generation_prompt=True, return_dict=False
    )
    renderer = Renderer.from_folder(folder)
    assert list(renderer.prompt(Example(0, "1+1?")).token_ids) == theirs
    assert renderer.vocab_size == json.loads((folder / "config.json").read_text())["vocab_size"]
    assert renderer.pad_id == tokenizer.pad_token_id
    assert tokenizer.eos_token_id in renderer.eos_ids
