"""Loss, every LoRA gradient, advantages and figures against TRL on one hand-made batch (float32).

The batch has prompts and completions of all lengths, truncated completions, a group with equal rewards and a masked
reward. Old logprobs are either absent (first update: ratio 1) or those of a policy far enough away for clipping to act.
"""

import functools
import itertools
from dataclasses import dataclass

import pytest
import torch
from builders import gradients as learner_gradients
from builders import make_learner, make_policy
from learner import trl_oracle
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from reinforge.learner.advantage import advantages
from reinforge.learner.loss import LossSettings, StepSize, policy_loss
from reinforge.types import Batch, Completion, Example, Grade, Group, Prompt, Score

pytestmark = [
    pytest.mark.slow,
    # PEFT asks transformers for an attribute it has renamed.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

TOLERANCE = 1e-5
TEMPERATURE = 0.9
SPREAD = 0.08
BATCH = trl_oracle.hand_made_batch()
CAP = 1.2
CORRECTIONS = [("truncate", "token"), ("mask", "token"), ("truncate", "sequence"), ("mask", "sequence")]


@dataclass(frozen=True)
class Case:
    loss_type: str
    level: str
    beta: float
    delta: float | None
    mask_truncated: bool
    off_policy: bool
    correct_kl: bool = True

    def __str__(self):
        words = [self.loss_type, self.level, f"beta{self.beta:g}", f"delta{self.delta}"]
        return "-".join([*words, *["masked"] * self.mask_truncated, *["off_policy"] * self.off_policy])

    @property
    def epsilon_high(self):
        return 1.5 if self.loss_type == "cispo" else 0.28

    def trl_settings(self):
        return {
            "loss_type": self.loss_type,
            "importance_sampling_level": self.level,
            "beta": self.beta,
            "use_bias_correction_kl": self.correct_kl,
            "delta": self.delta,
            "epsilon": 0.2,
            "epsilon_high": self.epsilon_high,
            "mask_truncated_completions": self.mask_truncated,
            "temperature": TEMPERATURE,
        }

    def settings(self):
        return LossSettings(
            self.loss_type,
            sequence_level=self.level == "sequence",
            epsilon=0.2,
            epsilon_high=self.epsilon_high,
            delta=self.delta,
            beta=self.beta,
            correct_kl=self.correct_kl,
            mask_truncated=self.mask_truncated,
            max_tokens=trl_oracle.MAX_TOKENS,
        )


CASES = [
    Case(loss_type, level, beta, delta, mask_truncated, off_policy)
    for loss_type, level, beta, delta, mask_truncated, off_policy in itertools.product(
        ["grpo", "bnpo", "dr_grpo", "dapo", "cispo"],
        ["token", "sequence"],
        [0.0, 0.04],
        [None, 2.0],
        [False, True],
        [False, True],
    )
    if not (loss_type == "cispo" and delta is not None)
]


@pytest.fixture(scope="module")
def plain_model(tiny_qwen2):
    """The same base model and adapter shape, without TRL and without the learner."""
    base = AutoModelForCausalLM.from_pretrained(tiny_qwen2, dtype=torch.float32)
    return get_peft_model(base, trl_oracle.lora_config()).eval()


@pytest.fixture(scope="module")
def old_and_now(plain_model):
    shapes = trl_oracle.lora_parameters(plain_model)
    return tuple(trl_oracle.lora_weights(shapes, seed, spread=SPREAD) for seed in (1, 2))


@pytest.fixture(scope="module")
def ask(tiny_qwen2, tmp_path_factory, old_and_now):
    """TRL's verdict on a case, asked for once."""
    output = tmp_path_factory.mktemp("trl")
    old, now = old_and_now

    @functools.cache
    def ask(case):
        before = old if case.off_policy else None
        return trl_oracle.ask_trl(tiny_qwen2, output, BATCH, before, now, **case.trl_settings())

    return ask


def plain_logprobs(model):
    """[B, T] by one right-padded forward: causal attention never looks at what follows."""
    rows = [torch.tensor(prompt + completion) for prompt, completion in BATCH.rows]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    logprobs = torch.log_softmax(model(input_ids=ids).logits / TEMPERATURE, dim=-1)
    drawn = logprobs[:, :-1].gather(2, ids[:, 1:].unsqueeze(2)).squeeze(2)
    picked = [drawn[row, len(p) - 1 : len(p) + len(c) - 1] for row, (p, c) in enumerate(BATCH.rows)]
    return torch.nn.utils.rnn.pad_sequence(picked, batch_first=True)


def loss_mask(settings):
    lengths = [
        0 if cut and settings.mask_truncated else len(completion)
        for (_, completion), cut in zip(BATCH.rows, BATCH.truncated, strict=True)
    ]
    longest = max(len(completion) for _, completion in BATCH.rows)
    return torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)


def plain_step(model, old_and_now, case):
    """Loss, figures and gradients of `policy_loss` on a plain padded forward."""
    old, now = old_and_now
    chosen = case.settings()
    size = StepSize.of([len(completion) for _, completion in BATCH.rows], BATCH.truncated, chosen)
    old_logprobs, reference = None, None
    with torch.no_grad():
        if case.off_policy:
            trl_oracle.set_lora(model, old)
            old_logprobs = plain_logprobs(model)
        trl_oracle.set_lora(model, now)
        if case.beta > 0:
            with model.disable_adapter():
                reference = plain_logprobs(model)
    model.zero_grad()
    values = torch.tensor([value for group in advantages(BATCH.rewards_PG, "group") for value in group])
    loss, sums = policy_loss(plain_logprobs(model), old_logprobs, values, loss_mask(chosen), chosen, size, reference)
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in trl_oracle.lora_parameters(model).items()}
    return loss.item(), gradients, sums.metrics(chosen, size)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_loss_and_gradients_equal_trl(case, ask, plain_model, old_and_now):
    verdict = ask(case)
    loss, gradients, figures = plain_step(plain_model, old_and_now, case)
    assert abs(loss - verdict.loss) <= TOLERANCE * max(1.0, abs(verdict.loss))
    assert trl_oracle.largest_gap(gradients, verdict.gradients) <= TOLERANCE
    if case.beta > 0:
        assert figures["policy/kl"] == pytest.approx(verdict.metrics["kl"], rel=1e-4)
    if case.loss_type == "cispo":
        assert figures["policy/clip_region_share"] == pytest.approx(verdict.metrics["cispo_clip_ratio"], abs=1e-6)
    else:
        assert figures["policy/clip_low_share"] == pytest.approx(verdict.metrics["clip_ratio/low_mean"], abs=1e-6)
        assert figures["policy/clip_high_share"] == pytest.approx(verdict.metrics["clip_ratio/high_mean"], abs=1e-6)
        assert figures["policy/clip_region_share"] == pytest.approx(verdict.metrics["clip_ratio/region_mean"], abs=1e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_learner_equals_trl(case, ask, tiny_qwen2, old_and_now):
    """The real thing: shared prefixes, several micro-batches, rows left out where they cannot matter."""
    assert_learner_agrees(make_policy(tiny_qwen2, rank=trl_oracle.RANK), case, ask(case), old_and_now)


@pytest.mark.parametrize("folder", ["tiny_qwen3", "tiny_llama"])
@pytest.mark.parametrize("off_policy", [False, True])
def test_the_learner_equals_trl_on_other_architectures(folder, off_policy, request, tmp_path):
    path = request.getfixturevalue(folder)
    policy = make_policy(path, rank=trl_oracle.RANK)
    case = Case("dapo", "token", 0.04, 2.0, False, off_policy)
    old, now = (trl_oracle.lora_weights(policy.trainable(), seed, spread=SPREAD) for seed in (1, 2))
    verdict = trl_oracle.ask_trl(path, tmp_path, BATCH, old if off_policy else None, now, **case.trl_settings())
    assert_learner_agrees(policy, case, verdict, (old, now))


def learner_batch(drawn=None):
    """The hand-made batch as the loop hands it to the learner; `drawn` are the sampler's logprobs."""
    ends = iter(BATCH.truncated)
    of_rows = iter(drawn or [(-1.0,) * len(completion) for _, completion in BATCH.rows])
    groups = []
    for p, (prompt, completions, rewards) in enumerate(
        zip(BATCH.prompts, BATCH.completions_PG, BATCH.rewards_PG, strict=True)
    ):
        made = tuple(
            Completion(g, ids, "", "length" if next(ends) else "stop", (-1.0,) * len(ids), next(of_rows), 0)
            for g, ids in enumerate(completions)
        )
        grades = tuple(Grade((Score("r", "r_v1", r, state="masked" if r is None else "ok"),)) for r in rewards)
        groups.append(Group(Prompt(Example(p, ""), "", prompt), epoch=0, completions=made, grades=grades))
    return Batch(tuple(groups), advantages([group.rewards_G for group in groups], "group"))


def assert_learner_agrees(policy, case, verdict, old_and_now, drawn=None, **changes):
    assert policy.shares_prefix
    learner = make_learner(
        policy,
        max_tokens=trl_oracle.MAX_TOKENS,
        learning_rate=0.0,
        loss_type=case.loss_type,
        importance_sampling_level=case.level,
        beta=case.beta,
        use_bias_correction_kl=case.correct_kl,
        delta=case.delta,
        epsilon=0.2,
        epsilon_high=case.epsilon_high,
        mask_truncated_completions=case.mask_truncated,
        sampling_params={"temperature": TEMPERATURE},
        num_iterations=2,
        tokens_per_microbatch=16,
        max_grad_norm=1e9,
        **changes,
    )
    old, now = old_and_now
    batch = learner_batch(drawn)
    trl_oracle.set_lora(policy.peft_model, old if case.off_policy else now)
    if case.off_policy:
        batch = batch.after(learner.update(batch))
        trl_oracle.set_lora(policy.peft_model, now)
    ours = learner_gradients(learner, batch)
    metrics = learner.update(batch).metrics
    assert abs(metrics["policy/loss"] - verdict.loss) <= TOLERANCE * max(1.0, abs(verdict.loss))
    assert trl_oracle.largest_gap(ours, verdict.gradients) <= TOLERANCE
    return metrics


CORRECTED = [(mode, level, off_policy) for mode, level in CORRECTIONS for off_policy in (False, True)]


@pytest.mark.parametrize(("mode", "level", "off_policy"), CORRECTED)
def test_importance_correction_equals_trl(mode, level, off_policy, tiny_qwen2, tmp_path, plain_model, old_and_now):
    """Tokens that a third policy has drawn; the KL penalty has no weights in TRL either."""
    drawn = drawn_logprobs(plain_model)
    case = Case("grpo", "token", 0.04, None, False, off_policy)
    verdict = trl_oracle.ask_trl(
        tiny_qwen2,
        tmp_path,
        BATCH,
        old_and_now[0] if off_policy else None,
        old_and_now[1],
        drawn,
        vllm_importance_sampling_mode=f"{level}_{mode}",
        vllm_importance_sampling_clip_max=CAP,
        **case.trl_settings(),
    )
    correction = {"mode": mode, "level": level, "cap": CAP}
    policy = make_policy(tiny_qwen2, rank=trl_oracle.RANK)
    figures = assert_learner_agrees(policy, case, verdict, old_and_now, drawn, importance_correction=correction)
    assert 0 < figures["policy/importance_capped_share"] < 1
    assert figures["policy/importance_mean"] == pytest.approx(
        verdict.metrics["sampling/importance_sampling_ratio/mean"], rel=1e-5
    )


def drawn_logprobs(model):
    """Of each completion's tokens under a policy that is neither the old one nor the new."""
    trl_oracle.set_lora(model, trl_oracle.lora_weights(trl_oracle.lora_parameters(model), 3, spread=SPREAD))
    with torch.no_grad():
        rows = plain_logprobs(model).tolist()
    return [tuple(row[: len(completion)]) for row, (_, completion) in zip(rows, BATCH.rows, strict=True)]


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("off_policy", [False, True])
def test_uncorrected_kl_equals_trl(level, off_policy, ask, plain_model, old_and_now):
    case = Case("dapo", level, 0.04, None, False, off_policy, correct_kl=False)
    verdict = ask(case)
    loss, gradients, _ = plain_step(plain_model, old_and_now, case)
    assert abs(loss - verdict.loss) <= TOLERANCE
    assert trl_oracle.largest_gap(gradients, verdict.gradients) <= TOLERANCE


def test_the_cases_are_apart(ask):
    """Every switch changes TRL's gradient on this batch: a loss that ignored one of them would be caught."""
    plain = {"loss_type": "grpo", "level": "token", "beta": 0.0, "delta": None, "mask_truncated": False}
    base = ask(Case(**plain, off_policy=True)).gradients
    changes = [
        {"loss_type": "dapo"},
        {"loss_type": "dr_grpo"},
        {"loss_type": "cispo"},
        {"level": "sequence"},
        {"beta": 0.04},
        {"delta": 2.0},
        {"mask_truncated": True},
    ]
    for change in changes:
        changed = ask(Case(**{**plain, **change}, off_policy=True)).gradients
        assert trl_oracle.largest_gap(changed, base) > 100 * TOLERANCE, change
    assert trl_oracle.largest_gap(ask(Case(**plain, off_policy=False)).gradients, base) > 100 * TOLERANCE


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_equal_trl(scale, tiny_qwen2, tmp_path, old_and_now):
    verdict = trl_oracle.ask_trl(tiny_qwen2, tmp_path, BATCH, None, old_and_now[1], scale_rewards=scale)
    ours = [value for group in advantages(BATCH.rewards_PG, scale) for value in group]
    assert ours == pytest.approx(verdict.batch["advantages"].tolist(), rel=1e-6, abs=1e-6)


def test_step_size_equals_trl(ask):
    for mask_truncated in (False, True):
        case = Case("dapo", "token", 0.0, None, mask_truncated, off_policy=False)
        lengths = [len(completion) for _, completion in BATCH.rows]
        size = StepSize.of(lengths, BATCH.truncated, case.settings())
        assert size.num_tokens == ask(case).batch["num_items_in_batch"].item()
