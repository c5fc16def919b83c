"""The recipe's tokenizer: a byte-level BPE whose only merges are 10..99 and the words of the prompt.

Made of 256 bytes and a merge list behind the GPT-2 pre-tokenizer, which is what llama.cpp and vLLM expect.
"""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

# Each becomes one token. A byte-level vocabulary writes the space before a word as "Ġ".
WORDS = ("user", "assistant", "system", "numbers", "Ġtarget")
NUMBERS = tuple(str(number) for number in range(10, 100))
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
CONTROLS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer: the tags are ordinary added tokens, so that text decoded without control tokens keeps them."""
    merges = [(word[:end], word[end]) for word in (*NUMBERS, *WORDS) for end in range(1, len(word))]
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet()) + [left + right for left, right in merges]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    # AutoTokenizer gives every Qwen2 model Qwen's own pre-tokenizer, which takes numbers apart before merges can act.
    # As added tokens they are found before any pre-tokenizer, under the same ids.
    backend.add_tokens([AddedToken(text, normalized=False) for text in (*NUMBERS, *TAGS)])
    backend.add_special_tokens([AddedToken(control, normalized=False, special=True) for control in CONTROLS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
