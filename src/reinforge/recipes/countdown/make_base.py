"""Make the recipe's base model: ``python -m reinforge.recipes.countdown.make_base --out DIR --seed N``.

A tiny Qwen2 learns from synthetic demonstrations to search and to judge its tries. Every amount is a count of steps, so
one seed on one thread gives the same weights bit for bit. Nothing is written unless the model passes the gate.
"""

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from reinforge.recipes.countdown.task import HABIT, SKILL, Problem, Style, claims, demonstrate, outcome, shuffled, split
from reinforge.recipes.countdown.tokenizer import build_tokenizer

# Tensor suffixes: B completions, T tokens.

BATCH_SIZE = 16
MUON_RATE, ADAM_RATE = 0.02, 3e-3
VERDICT_WEIGHT = 5.0  # of the loss on "?" and "!": judging a try is what the model learns last
NUM_SKILL_STEPS, NUM_HABIT_STEPS = 2600, 2000
MAX_MORE_ROUNDS = 3  # of the habit phase, when the gate is not passed
MAX_NEW_TOKENS = 320
MIN_FORMAT, MIN_PRECISION, CORRECT_RANGE = 0.95, 0.9, (0.15, 0.25)

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Figures:
    """What became of completions: shares of them; ``precision`` and ``recall`` of their claims of a hit."""

    outcomes: dict[str, float]
    precision: float
    recall: float
    mean_tries: float
    num_completions: int

    @property
    def formatted(self) -> float:
        """The share of completions with a complete thinking block and answer."""
        return 1 - self.outcomes.get("cut_off", 0.0)

    @property
    def passes(self) -> bool:
        """Whether the model is fit to be the base of the recipe."""
        low, high = CORRECT_RANGE
        return (
            self.formatted >= MIN_FORMAT
            and self.precision >= MIN_PRECISION
            and low <= self.outcomes.get("correct", 0.0) <= high
        )

    def __str__(self) -> str:
        shares = " ".join(f"{name} {share:.3f}" for name, share in sorted(self.outcomes.items()))
        return (
            f"format {self.formatted:.3f} {shares} precision {self.precision:.3f} recall {self.recall:.3f} "
            f"tries {self.mean_tries:.2f} n {self.num_completions}"
        )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2ForCausalLM:
    """A Qwen2 of about 0.45M parameters with random weights and heads of size 32."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    _match_keys_to_queries(model)
    return model


@torch.no_grad()
def _match_keys_to_queries(model: Qwen2ForCausalLM) -> None:
    """Start each key projection as the query projection of its group's first head: equal tokens then attend.

    The verdict compares two numbers; from a random start the head that does so appears late (a mimetic initialisation).
    """
    for layer in model.model.layers:
        attention = layer.self_attn
        group_size, head_size = attention.num_key_value_groups, attention.head_dim
        queries = attention.q_proj.weight.view(-1, group_size, head_size, attention.q_proj.in_features)
        attention.k_proj.weight.copy_(queries[:, 0].reshape_as(attention.k_proj.weight))
        attention.q_proj.weight.mul_(8)


def prompt_ids(tokenizer: PreTrainedTokenizerFast, problem: Problem) -> list[int]:
    """The token ids of a problem's rendered prompt."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": problem.prompt}], tokenize=False, add_generation_prompt=True
    )
    return list(tokenizer.encode(text))


def batches(tokenizer: PreTrainedTokenizerFast, rng: random.Random, style: Style) -> Iterator[Batch]:
    """Endless batches (ids_BT, loss_weights_BT) of demonstrations of similar length; prompts and padding weigh 0."""
    problems = split("warm_start")
    while True:
        rows = []
        for _ in range(16 * BATCH_SIZE):
            problem = shuffled(rng.choice(problems), rng)
            rows.append((prompt_ids(tokenizer, problem), tokenizer.encode(demonstrate(problem, rng, style))))
        rows.sort(key=lambda row: len(row[1]))
        groups = [rows[begin : begin + BATCH_SIZE] for begin in range(0, len(rows), BATCH_SIZE)]
        rng.shuffle(groups)
        for group in groups:
            yield _pad(tokenizer, group)


def _pad(tokenizer: PreTrainedTokenizerFast, rows: list[tuple[list[int], list[int]]]) -> Batch:
    """One batch of (prompt ids, completion ids), the end token added."""
    verdicts = set(tokenizer.convert_tokens_to_ids(["?", "!"]))
    length = 1 + max(len(prompt) + len(completion) for prompt, completion in rows)
    ids, weights = [], []
    for prompt, completion in rows:
        padding = length - len(prompt) - len(completion) - 1
        ids.append([*prompt, *completion, tokenizer.eos_token_id, *[tokenizer.pad_token_id] * padding])
        judged = [VERDICT_WEIGHT if token in verdicts else 1.0 for token in completion]
        weights.append([*[0.0] * len(prompt), *judged, 1.0, *[0.0] * padding])
    return torch.tensor(ids), torch.tensor(weights)


def train(model: Qwen2ForCausalLM, data: Iterator[Batch], num_steps: int, peak: float) -> None:
    """Supervised steps: 20 of warm-up, then constant, linear to 0 over the second half; ``peak`` scales both rates.

    Muon for the matrices of the layers, AdamW for the rest: at equal steps it judged twice as well as AdamW alone.
    """
    matrices = [one for one in model.model.layers.parameters() if one.ndim == 2]
    others = [one for one in model.parameters() if not any(one is matrix for matrix in matrices)]
    optimizers: list[tuple[torch.optim.Optimizer, float]] = [
        (torch.optim.Muon(matrices, momentum=0.95, weight_decay=0.0, ns_steps=4), MUON_RATE * peak),
        (torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0), ADAM_RATE * peak),
    ]
    model.train()
    begin, judging = time.monotonic(), 0.0
    for step in range(num_steps):
        course = min(1.0, (step + 1) / 20, 2 * (num_steps - step) / num_steps)
        for optimizer, rate in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * course
        loss, judging_loss = _losses(model, next(data))
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
        judging += judging_loss / 100
        if (step + 1) % 100 == 0:
            seconds = time.monotonic() - begin
            print(
                f"step {step + 1}/{num_steps} loss {loss.item():.3f} judging {judging:.4f} {seconds:.0f} s", flush=True
            )
            judging = 0.0


def _losses(model: Qwen2ForCausalLM, batch: Batch) -> tuple[torch.Tensor, float]:
    """The weighted mean loss, and the plain mean loss of the verdicts alone."""
    ids_BT, weights_BT = batch[0], batch[1][:, 1:]
    logits_BTV = model(input_ids=ids_BT[:, :-1]).logits
    losses_BT = cross_entropy(logits_BTV.transpose(1, 2), ids_BT[:, 1:], reduction="none")
    judging = losses_BT.detach()[weights_BT == VERDICT_WEIGHT].mean().item()
    return (losses_BT * weights_BT).sum() / weights_BT.sum(), judging


@torch.no_grad()
def measure(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: list[Problem],
    seed: int,
    temperature: float = 1.0,
) -> Figures:
    """Sample one completion of every problem and count what became of it (temperature 0 is greedy)."""
    model.eval()
    torch.manual_seed(seed)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    counts: Counter[str] = Counter()
    verdicts = []
    for begin in range(0, len(problems), 200):
        chunk = problems[begin : begin + 200]
        # Every prompt has the same number of tokens (numbers up to 99 are single ones): no padding is needed.
        ids_BT = torch.tensor([prompt_ids(tokenizer, problem) for problem in chunk])
        output_BT = model.generate(input_ids=ids_BT, max_new_tokens=MAX_NEW_TOKENS, **sampling)
        texts = tokenizer.batch_decode(output_BT[:, ids_BT.shape[1] :], skip_special_tokens=True)
        counts.update(outcome(text, one.numbers, one.target) for text, one in zip(texts, chunk, strict=True))
        for text, one in zip(texts, chunk, strict=True):
            verdicts += claims(text, one.numbers, one.target)
    claimed = sum(one.claimed for one in verdicts)
    true = sum(one.true for one in verdicts)
    both = sum(one.claimed and one.true for one in verdicts)
    return Figures(
        outcomes={name: count / len(problems) for name, count in counts.items()},
        precision=both / max(claimed, 1),
        recall=both / max(true, 1),
        mean_tries=len(verdicts) / len(problems),
        num_completions=len(problems),
    )


def make_base(seed: int) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerFast, Figures]:
    """Teach the skill, then the habit, and train on until the gate is passed; returns the last model either way."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed)
    rng = random.Random(seed)
    train(model, batches(tokenizer, rng, SKILL), NUM_SKILL_STEPS, 1.0)
    problems = [shuffled(one, rng) for one in split("choice") * 4]
    for _ in range(1 + MAX_MORE_ROUNDS):
        train(model, batches(tokenizer, rng, HABIT), NUM_HABIT_STEPS, 0.5)
        figures = measure(model, tokenizer, problems, seed)
        print(figures, flush=True)
        if figures.passes:
            break
    return model, tokenizer, figures


def main() -> None:
    """Make the base and write it, or leave with 1 and the figures that failed."""
    parser = argparse.ArgumentParser(description="Make the base model of the Countdown recipe.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer, figures = make_base(arguments.seed)
    if not figures.passes:
        sys.exit(
            f"Not written, the base missed its gate (format >= {MIN_FORMAT}, precision >= {MIN_PRECISION}, "
            f"correct within {CORRECT_RANGE}): {figures}. Try another --seed."
        )
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out, save_jinja_files=False)


if __name__ == "__main__":
    main()
