"""The work both trainers are given: a model with random weights, prompts, completion lengths and a reward.

Timing does not depend on weights once lengths are forced, so nothing is downloaded.
`python benchmarks/workload.py JOB.json` writes the job's model folder.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from reinforge.data.order import PromptOrder

PAD, END = 0, 1
"""Token ids; every other token is an ordinary word."""
LORA_RANK, LORA_ALPHA = 16, 32
LEARNING_RATE = 1e-5

REWARD_SOURCE = '''\
"""A reward that means nothing. It differs for every completion, but is 0.5 for all of a prompt that begins with an even
word: those groups teach nothing."""

import re
import zlib


def noise(prompts, completions, **columns):
    return [
        zlib.crc32(str(completion).encode()) / 2**32 if int(re.search(r"w(\\d+)", str(prompt))[1]) % 2 else 0.5
        for prompt, completion in zip(prompts, completions)
    ]
'''


@dataclass(frozen=True)
class ModelSize:
    """A Qwen2 architecture; the default has 5.3M parameters."""

    vocab_size: int = 4096
    hidden_size: int = 256
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    num_key_value_heads: int = 2
    intermediate_size: int = 704


SIZES = {
    "5M": ModelSize(),
    "50M": ModelSize(hidden_size=512, num_hidden_layers=16, intermediate_size=1408),
    "0.5B": ModelSize(151_936, 896, 24, 14, 2, 4864),
    "1.5B": ModelSize(151_936, 1536, 28, 12, 2, 8960),
}
"""By roughly how many parameters; the last two are Qwen2.5's."""
FOR_GPUS = ("0.5B", "1.5B")


@dataclass(frozen=True)
class Shape:
    """How long prompts and completions are."""

    name: str
    prompt_tokens: int
    max_tokens: int
    """Longest completion."""
    skewed: bool = False
    """Completion lengths are log-normal (median 110, sigma 0.8), at least 16, and exactly one has `max_tokens`;
    otherwise all have `max_tokens`."""

    equal_share: float = 0.0
    """Share of the step's groups whose rewards are all equal, so that they teach nothing."""
    beta: float = 0.0
    """Weight of the KL penalty."""


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("short", 64, 64),
        Shape("long_prompt", 1024, 64),
        Shape("long_completion", 64, 512, skewed=True),
        Shape("mixed", 512, 256),
        Shape("short_half_equal", 64, 64, equal_share=0.5),
        Shape("short_kl", 64, 64, beta=0.04),
    )
}


@dataclass(frozen=True)
class Job:
    """What one worker process is to do; travels as a JSON file."""

    shape: Shape
    folder: str
    """Holds model/ and noise.py; workers may write beside them."""
    prompts_per_step: int
    num_generations: int
    steps: int
    """Warm-up included."""
    trl_rows: int
    """Completions in one of TRL's micro-batches (per_device_train_batch_size)."""
    size: ModelSize = field(default_factory=ModelSize)
    device: str = "cpu"

    @property
    def dtype(self) -> str:
        """Of both sides' base models; adapters are float32."""
        return "float32" if self.device == "cpu" else "bfloat16"

    @property
    def num_rows(self) -> int:
        return self.prompts_per_step * self.num_generations

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Job:
        values = json.loads(path.read_text())
        return cls(**values | {"shape": Shape(**values["shape"]), "size": ModelSize(**values["size"])})


def completion_lengths(shape: Shape, num_rows: int) -> list[int]:
    """Tokens of each completion of a step, the same in every step.

    >>> completion_lengths(Shape("short", 64, 64), 3), max(completion_lengths(SHAPES["long_completion"], 32))
    ([64, 64, 64], 512)
    """
    if not shape.skewed:
        return [shape.max_tokens] * num_rows
    draw = random.Random(0)
    drawn = [int(draw.lognormvariate(4.7, 0.8)) for _ in range(num_rows - 1)]
    lengths = [min(max(length, 16), shape.max_tokens - 1) for length in drawn]
    lengths.insert(draw.randrange(num_rows), shape.max_tokens)
    return lengths


def prompts(job: Job) -> list[str]:
    """One different prompt for each place in each step; a word is a token. The first word tells the reward whether its
    group teaches; in every step of Reinforge's order of prompts the same number do (TRL, which treats all groups alike,
    has an order of its own)."""
    draw = random.Random(1)
    words = range(END + 1, job.size.vocab_size)
    count = job.prompts_per_step * job.steps
    found = [[draw.choice(words) for _ in range(job.shape.prompt_tokens)] for _ in range(count)]
    order = PromptOrder(count, seed=0)
    for position in range(count):
        teaches = position % job.prompts_per_step >= job.shape.equal_share * job.prompts_per_step
        first = found[order.at(position)[0]]
        first[0] = max(first[0] // 2 * 2, END + 1) + teaches
    return [" ".join(f"w{word}" for word in prompt) for prompt in found]


def write_model(folder: Path, size: ModelSize, dtype: str = "float32") -> None:
    """Config, weights and a word-level tokenizer; and the reward function beside the folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    vocabulary = {"<pad>": PAD, "<end>": END} | {f"w{i}": i for i in range(END + 1, size.vocab_size)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<end>")
    torch.manual_seed(0)
    config = Qwen2Config(
        **asdict(size),
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=END,
    )
    Qwen2ForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder.parent / "noise.py").write_text(REWARD_SOURCE)


if __name__ == "__main__":
    job = Job.read(Path(sys.argv[1]))
    write_model(Path(job.folder) / "model", job.size, job.dtype)
