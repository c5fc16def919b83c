"""Fixtures that several test files share: tiny models on disk, and real data where it is at hand.

Torch is held to one thread before anything imports it: results stay bitwise equal and two test workers do not
fight over two cores.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import pytest

# Two workers share two cores with whatever else runs: a slow example is no fault.
hypothesis.settings.register_profile("house", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("house")

os.environ.pop("COLUMNS", None)  # pytest-xdist sets it in its workers, and tables would be fitted to our terminal

Architecture = Literal["qwen2", "qwen3", "llama"]

CHAT_TEMPLATE = (
    "{% for tool in tools or [] %}<tool>{{ tool | tojson }}</tool>\n{% endfor %}"
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")


@pytest.fixture(scope="session")
def tiny_qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a Qwen2 model with random weights: biases in q, k and v, tied embeddings."""
    return make_tiny_model_folder("qwen2", tmp_path_factory.mktemp("tiny_qwen2"))


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a Qwen3 model with random weights: normed queries and keys, head size apart from hidden size."""
    return make_tiny_model_folder("qwen3", tmp_path_factory.mktemp("tiny_qwen3"))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a Llama model with random weights: untied embeddings, no biases."""
    return make_tiny_model_folder("llama", tmp_path_factory.mktemp("tiny_llama"))


@pytest.fixture(params=["qwen2", "qwen3", "llama"])
def tiny_model(request: pytest.FixtureRequest) -> Path:
    """Each of the three folders in turn."""
    folder: Path = request.getfixturevalue(f"tiny_{request.param}")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real data sets (gsm8k/ ...) beside the checkout; the test is skipped where there is none."""
    folder = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data beside the checkout: the tests on real data sets need it")
    return folder


def make_tiny_model_folder(architecture: Architecture, folder: Path) -> Path:
    """Write config, float32 weights and a byte-level tokenizer with a chat template; equal at every call."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    classes = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }
    tokenizer = _byte_tokenizer()
    config_class, model_class = classes[architecture]
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24 if architecture == "qwen3" else 16,
        max_position_embeddings=512,
        initializer_range=0.2,  # large, so that random logits are far from uniform and mistakes show
        tie_word_embeddings=architecture != "llama",
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config).to(torch.float32)
        _randomise_constants(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _randomise_constants(model) -> None:
    """Biases start at 0 and norms at 1: code that forgets them would pass every test."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(mean=1.0 if "norm" in name else 0.0, std=0.1)


def _byte_tokenizer():
    """One token per byte, then the special tokens: any text goes in, and every text comes back as it was."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|end|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
