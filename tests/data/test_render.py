"""Rendering equals transformers' token for token; special tokens, plain texts, decoding."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

from reinforge.data.render import Renderer, longest_answer_tokens, max_tokens_for, render_prompts
from reinforge.errors import DataError, ModelError
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
# Without dashes: how Jinja trims lines around blocks decides the white space.
INDENTED = """{% for message in messages %}
    {% if message.role == 'user' and not loop.first %}
        {% break %}
    {% endif %}
    <|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}
{% if tools %}
  {{ tools | tojson(indent=2) }}
{% endif %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""
SPECIAL = {
    "indented": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "chatml": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "qwen": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "llama3": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
}
TEMPLATES = {"chatml": CHATML, "indented": INDENTED, "qwen": QWEN, "llama3": LLAMA3}
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


def write_tokenizer(folder: Path, family: str, **changes: Any) -> Path:
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
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATES[family], **named, **changes}
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


@pytest.mark.parametrize(
    ("family", "tools"),
    [
        ("chatml", ()),
        *[
            (family, tools)
            for family in ("qwen", "llama3", "indented")
            for tools in ((), (TOOL,), (TOOL, {"name": "Ünï"}))
        ],
    ],
)
@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_equals_transformers(folders, family, messages, tools):
    from transformers import AutoTokenizer

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


# Plain texts.


def test_a_text_is_one_user_message(qwen):
    as_message = qwen.prompt(Example(0, ({"role": "user", "content": "1+1?"},)))
    assert qwen.prompt(Example(0, "1+1?")).token_ids == as_message.token_ids
    assert as_message.text.endswith("<|im_start|>assistant\n")


def test_a_rendered_text_is_taken_as_it_is(qwen, folders):
    rendered = qwen.prompt(Example(0, "1+1?"))
    again = qwen.prompt(Example(0, rendered.text))
    assert (again.text, again.token_ids) == (rendered.text, rendered.token_ids)
    ends_special = qwen.prompt(Example(0, "<|im_start|>x<|im_end|>"))
    assert qwen.vocab_size > 300
    assert ends_special.token_ids[-1] == Tokenizer.from_file(str(folders["qwen"] / "tokenizer.json")).token_to_id(
        "<|im_end|>"
    )
    with pytest.raises(DataError, match=r"Example 4 has a message that begins with a special token"):
        qwen.prompt(Example(4, ({"role": "system", "content": "s"}, {"role": "user", "content": rendered.text})))


def test_bos_is_never_doubled(tmp_path, folders):
    from transformers import AutoTokenizer

    chat = Renderer.from_folder(folders["llama3"])
    tokens = chat.prompt(Example(0, "Hi")).token_ids
    assert tokens.count(0) == 1
    assert tokens[0] == 0
    base = write_tokenizer(tmp_path, "llama3", chat_template=None)
    plain = Renderer.from_folder(base)
    theirs = AutoTokenizer.from_pretrained(base)("1+1 = ")["input_ids"]
    assert list(plain.prompt(Example(0, "1+1 = ")).token_ids) == theirs
    assert theirs[0] == 0
    assert list(plain.prompt(Example(0, "<|begin_of_text|>1+1 = ")).token_ids) == theirs
    assert list(chat.prompt(Example(0, "<|begin_of_text|>1+1 = ")).token_ids) == theirs
    assert plain.prompt(Example(0, "1+1 = ")).text == "1+1 = "


def test_an_end_token_that_the_tokenizer_adds_is_left_out(tmp_path):
    folder = write_tokenizer(tmp_path, "llama3", chat_template=None)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A <|eot_id|>", special_tokens=[("<|begin_of_text|>", 0), ("<|eot_id|>", 4)]
    )
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(folder / "tokenizer.json"))
    renderer = Renderer.from_folder(folder)
    token_ids = renderer.prompt(Example(0, "12345<|eot_id|>6")).token_ids
    assert token_ids[0] == 0
    assert token_ids.count(4) == 1
    assert token_ids[-1] != 4
    assert renderer.decode(token_ids) == "123456"


def test_what_a_template_cannot_show_is_refused(tmp_path, folders):
    base = Renderer.from_folder(write_tokenizer(tmp_path / "base", "qwen", chat_template=None))
    messages = ({"role": "user", "content": "Hi"},)
    with pytest.raises(DataError, match=r"Example 3 has chat messages .* no chat template"):
        base.prompt(Example(3, messages))
    with pytest.raises(DataError, match=r"goes through no chat template"):
        base.prompt(Example(3, "Hi", tools=(TOOL,)))
    with pytest.raises(DataError, match=r"chat template shows none"):
        Renderer.from_folder(folders["chatml"]).prompt(Example(3, "Hi", tools=(TOOL,)))
    llama3 = Renderer.from_folder(folders["llama3"])
    with pytest.raises(DataError, match=r"Example 3: the chat template refuses it: Unknown role: developer"):
        llama3.prompt(Example(3, ({"role": "user", "content": "Hi"}, {"role": "developer", "content": "x"})))
    with pytest.raises(DataError, match=r"Example 3: the chat template refuses it"):
        Renderer.from_folder(folders["chatml"]).prompt(Example(3, ({"role": "user", "content": None},)))
    with pytest.raises(DataError, match=r"a prompt of no tokens"):
        base.prompt(Example(3, ""))


def test_template_code_cannot_leave_the_sandbox(tmp_path):
    attack = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    folder = write_tokenizer(tmp_path, "chatml", chat_template=attack)
    with pytest.raises(DataError, match=r"refuses it: access to attribute '__class__'"):
        Renderer.from_folder(folder).prompt(Example(0, "Hi"))


def test_today_can_be_fixed(folders):
    day = datetime.datetime(2024, 7, 26)
    renderer = Renderer.from_folder(folders["llama3"], today=day)
    assert "Today Date: 26 Jul 2024" in renderer.prompt(Example(0, "Hi")).text


# The folder's files.


def test_template_file_and_named_templates(tmp_path):
    named = [{"name": "default", "template": "plain:"}, {"name": "tool_use", "template": "{{ tools|length }}:"}]
    folder = write_tokenizer(tmp_path, "chatml", chat_template=named)
    renderer = Renderer.from_folder(folder)
    assert renderer.prompt(Example(0, "Hi")).text == "plain:"
    assert renderer.prompt(Example(0, "Hi", tools=(TOOL,))).text == "1:"
    (folder / "chat_template.jinja").write_text("from file:{{ messages[0].content }}")
    assert Renderer.from_folder(folder).prompt(Example(0, "Hi")).text == "from file:Hi"
    (folder / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(ModelError, match=r'chat template "default" is no valid Jinja at line 1'):
        Renderer.from_folder(folder)


def test_all_end_tokens_count_and_padding_falls_back(tmp_path):
    folder = write_tokenizer(tmp_path, "qwen", pad_token=None)
    assert Renderer.from_folder(folder).eos_ids == {2}
    assert Renderer.from_folder(folder).pad_id == 2
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 5, "pad_token_id": -1}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 7]}))
    renderer = Renderer.from_folder(folder)
    assert renderer.eos_ids == {0, 2, 5, 7}
    assert renderer.decode([60, 5]) == renderer.decode([60]) != ""  # 5 is an ordinary token, but here it ends a text
    assert renderer.pad_id == 2
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 7], "pad_token_id": 1}))
    assert Renderer.from_folder(folder).pad_id == 1
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": {"content": "<|endoftext|>"}}))
    assert Renderer.from_folder(folder).pad_id == 0


def test_older_special_tokens_map_and_added_tokens(tmp_path):
    folder = write_tokenizer(tmp_path, "qwen", eos_token=None, pad_token=None)
    with pytest.raises(ModelError, match=r"names no end-of-sequence token"):
        Renderer.from_folder(folder)
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|im_end|>"}}))
    assert Renderer.from_folder(folder).eos_ids == {2}
    before = Renderer.from_folder(folder).vocab_size
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {str(before): {"content": "<|new|>", "special": True}}
    config["eos_token"] = "<|new|>"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    renderer = Renderer.from_folder(folder)
    assert renderer.eos_ids == {before}
    assert renderer.vocab_size == before + 1
    assert renderer.decode([before]) == ""


def test_damaged_folders(tmp_path):
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        Renderer.from_folder(tmp_path)
    folder = write_tokenizer(tmp_path, "qwen")
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"generation_config\.json is not JSON"):
        Renderer.from_folder(folder)
    (folder / "generation_config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"holds no JSON object"):
        Renderer.from_folder(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        Renderer.from_folder(folder)


# Decoding.


def test_decode_leaves_out_special_and_end_tokens(qwen):
    token_ids = qwen.prompt(Example(0, "Größe 🙂")).token_ids
    assert "<|im" not in qwen.decode(token_ids)
    assert "user\nGröße 🙂\n" in qwen.decode(token_ids)
    assert qwen.decode([]) == ""
    assert qwen.decode([qwen.vocab_size + 5]) == ""


# Lengths.


def test_overlong_prompts(qwen):
    examples = [Example(index, "x" * length) for index, length in enumerate([1, 400, 2, 300, *[200] * 12])]
    lengths = [qwen.prompt(example).num_tokens for example in examples]
    limit = lengths[2]
    told: list[str] = []
    kept = render_prompts(examples, qwen, limit, "skip", told.append)
    assert [prompt.example.index for prompt in kept] == [0, 2]
    (message,) = told
    assert message.startswith(f"14 of 16 prompts exceed {limit} tokens: examples 1 ({lengths[1]} tokens), 3 (")
    assert message.endswith("and 4 more. They were left out.")
    with pytest.raises(DataError, match=r"Raise data\.max_prompt_tokens, shorten them, or set data\.overlong_pr"):
        render_prompts(examples, qwen, limit, "error")
    with pytest.raises(DataError, match=r"16 of 16 prompts exceed 1 tokens"):
        render_prompts(examples, qwen, 1, "skip")
    assert len(render_prompts(examples, qwen, lengths[1], "error")) == 16
    assert len(render_prompts(examples, qwen, None, "error")) == 16


def test_longest_answer(qwen):
    examples = [Example(0, "q", {"a": "x" * 70}), Example(1, "q", {"a": 5}), Example(2, "q", {"a": None})]
    assert longest_answer_tokens(examples, "a", qwen) == qwen.num_tokens("x" * 70)
    assert longest_answer_tokens(examples[2:], "a", qwen) == 0
    assert [max_tokens_for(longest) for longest in (0, 32, 33, 512, 513)] == [64, 64, 66, 1024, 1024]
    with pytest.raises(DataError, match=r'no column "answer" .found: a'):
        longest_answer_tokens(examples, "answer", qwen)
