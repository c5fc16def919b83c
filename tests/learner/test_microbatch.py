"""When memory runs out, a step is computed in smaller passes, and its gradient stays the same."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from builders import gradients, make_batch, make_config, make_learner, make_policy, relative_difference

from reinforge.errors import SetupError
from reinforge.insight.memory import Load, Pass
from reinforge.learner import microbatch
from reinforge.learner.microbatch import device_bytes, pass_of, plan_memory
from reinforge.learner.update import LocalLearner
from reinforge.policy import attention
from reinforge.policy.out_of_memory import is_out_of_memory
from reinforge.types import Update

TESTS = str(Path(__file__).resolve().parents[1])


def ration(monkeypatch, learner, max_tokens):
    """Passes of more tokens than this find no memory, as torch tells it."""
    real = type(learner)._hidden

    def hidden(self, chunk, rows, *arguments):
        if sum(row.length for row in rows) > max_tokens:
            torch.empty(1 << 60)
        return real(self, chunk, rows, *arguments)

    monkeypatch.setattr(type(learner), "_hidden", hidden)


def test_the_gradient_is_the_same_after_memory_ran_out(tiny_qwen2, monkeypatch):
    batch = make_batch([5, 9, 3], [[4, 5, 6], [3, 8, 2], [7, 1, 5]])
    whole = gradients(make_learner(make_policy(tiny_qwen2), beta=0.04), batch)
    learner = make_learner(make_policy(tiny_qwen2), beta=0.04)
    ration(monkeypatch, learner, 11)
    learner.learning_rate = 0.0
    update = learner.update(batch)
    metrics = update.metrics
    ours = {name: p.grad.clone() for name, p in learner.policy.trainable().items()}
    assert relative_difference(ours, whole) < 1e-6
    assert metrics["policy/microbatch_tokens"] == learner.tokens_per_microbatch <= 11
    assert metrics["policy/trained_tokens"] == 41
    assert update.lowered_tokens == learner.tokens_per_microbatch
    assert learner.update(batch).lowered_tokens is None
    assert learner.tokens_per_microbatch == update.lowered_tokens


def test_a_single_completion_without_memory_ends_the_run_and_says_what_to_do(tiny_qwen2, monkeypatch):
    learner = make_learner(make_policy(tiny_qwen2))
    ration(monkeypatch, learner, 3)
    before = learner.state_hash()
    with pytest.raises(SetupError, match=r"ran out in step 1.*gradient_checkpointing"):
        learner.update(make_batch([5, 9], [[4, 5], [3, 8]]))
    assert learner.state_hash() == before


def test_prompts_that_find_no_memory_together_are_run_apart(tiny_qwen2, monkeypatch):
    """Though each of their completions is alone in its micro-batch already."""
    batch = make_batch([20, 20, 20], [[30], [31], [32]])
    whole = gradients(make_learner(make_policy(tiny_qwen2)), batch)
    learner, real = make_learner(make_policy(tiny_qwen2), tokens_per_microbatch=40), LocalLearner._run_prefixes

    def run_prefixes(self, chunk):
        if len(chunk.prompts) > 1:
            torch.empty(1 << 60)
        return real(self, chunk)

    monkeypatch.setattr(LocalLearner, "_run_prefixes", run_prefixes)
    assert relative_difference(gradients(learner, batch), whole) < 1e-6


def test_prompts_behind_a_common_beginning_that_finds_no_memory_end_the_run(tiny_qwen2, monkeypatch):
    """Even the smallest passes run several of them, where the longest alone is larger."""
    learner, attempts = make_learner(make_policy(tiny_qwen2), tokens_per_microbatch=64), []
    batch = make_batch([1, 1, 2, 30], [[3, 4]] * 4)
    common = tuple(range(100))
    prompts = [replace(group.prompt, token_ids=common + group.prompt.token_ids) for group in batch.groups]
    groups = (replace(group, prompt=prompt) for group, prompt in zip(batch.groups, prompts, strict=True))

    def run_prefixes(self, chunk):
        attempts.append(len(chunk.prompts))
        assert len(attempts) < 20
        torch.empty(1 << 60)

    monkeypatch.setattr(LocalLearner, "_run_prefixes", run_prefixes)
    with pytest.raises(SetupError, match="ran out in step 1"):
        learner.update(replace(batch, groups=tuple(groups)))
    assert attempts[-1] == 3


def test_other_faults_are_not_taken_for_a_lack_of_memory():
    with pytest.raises(RuntimeError) as fault:
        torch.zeros(2) @ torch.zeros(3)
    assert not is_out_of_memory(fault.value)
    with pytest.raises(RuntimeError) as fault:
        torch.empty(1 << 60)
    assert is_out_of_memory(fault.value)


def test_a_learner_that_recomputes_already_is_not_told_to(tiny_qwen2, monkeypatch):
    learner = make_learner(make_policy(tiny_qwen2), gradient_checkpointing=True)
    ration(monkeypatch, learner, 3)
    with pytest.raises(SetupError) as told:
        learner.update(make_batch([5, 9], [[4, 5], [3, 8]]))
    assert told.value.hint.startswith("Begin anew")
    assert told.value.exit_code == 4


def test_without_a_shared_prefix_a_prompt_counts_with_its_completion(tiny_qwen2, monkeypatch):
    policy = replace(make_policy(tiny_qwen2), shares_prefix=False, network=None)
    attention.use_plain_attention(policy.model)
    batch = make_batch([5, 9], [[4, 5], [3, 8]])
    whole = gradients(make_learner(policy), batch)
    learner, real, attempts = make_learner(policy), type(make_learner(policy))._plain_logits, []

    def plain_logits(self, rows, keys):
        attempts.append(len(rows))
        if len(rows) > 1:
            torch.empty(1 << 60)
        return real(self, rows, keys)

    monkeypatch.setattr(type(learner), "_plain_logits", plain_logits)
    assert relative_difference(gradients(learner, batch), whole) < 1e-6
    assert attempts[-4:] == [1, 1, 1, 1]
    assert len(attempts) <= 4 + 3


def test_a_resumed_learner_keeps_the_size(tiny_qwen2, tmp_path):
    learner = make_learner(make_policy(tiny_qwen2), tokens_per_microbatch=7)
    learner.update(make_batch([5], [[4, 5]]))
    learner.save(tmp_path)
    resumed = make_learner(make_policy(tiny_qwen2))
    resumed.restore(tmp_path)
    assert resumed.tokens_per_microbatch == 7
    (tmp_path / "learner.json").write_text('{"steps_done": 1}')  # as it was before sizes were kept
    resumed = make_learner(make_policy(tiny_qwen2), tokens_per_microbatch=9)
    resumed.restore(tmp_path)
    assert resumed.tokens_per_microbatch == 9


def learned(learner, batches) -> tuple[str, list[Update]]:
    updates = [learner.update(batch) for batch in batches]
    return learner.state_hash(), updates


def test_what_memory_left_is_repeated_at_the_same_step(tiny_qwen2, monkeypatch):
    """As a resume from before it does, where memory may not run out again: bitwise."""
    batches = [make_batch([5, 9, 3], [[4, 5, 6], [3, 8, 2], [7, 1, 5]], seed=seed) for seed in range(3)]
    learner = make_learner(make_policy(tiny_qwen2), beta=0.04)
    first, _ = learned(learner, batches[:1])
    with monkeypatch.context() as scarce:
        ration(scarce, learner, 11)
        expected, updates = learned(learner, batches[1:])
    lowered = updates[0].lowered_tokens
    assert lowered is not None

    def again(recorded: dict[int, int]) -> str:
        config = make_config(beta=0.04)
        other = LocalLearner(
            make_policy(tiny_qwen2), config, max_tokens=32, learning_rate=1e-3, recorded_tokens=recorded
        )
        assert learned(other, batches[:1])[0] == first
        return learned(other, batches[1:])[0]

    assert again({2: lowered}) == expected
    assert again({}) != expected


def test_what_was_recorded_for_later_steps_is_void_once_memory_runs_out_before_them(tiny_qwen2, monkeypatch):
    """As run_store/microbatches.py reads the events of such a run: another resume goes the same way."""
    batches = [make_batch([5, 9, 3], [[4, 5, 6], [3, 8, 2], [7, 1, 5]], seed=seed) for seed in range(3)]
    learner = LocalLearner(
        make_policy(tiny_qwen2), make_config(), max_tokens=32, learning_rate=1e-3, recorded_tokens={0: 64, 2: 30}
    )
    with monkeypatch.context() as scarce:
        ration(scarce, learner, 11)
        lowered = learner.update(batches[0]).lowered_tokens
    assert lowered is not None
    assert lowered <= 11
    for batch in batches[1:]:
        assert learner.update(batch).metrics["policy/microbatch_tokens"] == lowered


def test_a_reference_does_not_depend_on_where_a_run_was_resumed(tiny_qwen2, tmp_path, monkeypatch):
    """Several updates on one batch; memory runs out in the second."""
    settings = {"beta": 0.04, "num_iterations": 4}
    batch = make_batch([5, 9, 3], [[4, 5, 6], [3, 8, 2], [7, 1, 5]])
    learner = make_learner(make_policy(tiny_qwen2), **settings)
    batch = batch.after(learner.update(batch))
    with monkeypatch.context() as scarce:
        ration(scarce, learner, 11)
        batch = batch.after(learner.update(batch))
    learner.save(tmp_path)
    resumed = make_learner(make_policy(tiny_qwen2), **settings)
    resumed.restore(tmp_path)
    for _ in range(2):
        updates = [one.update(batch) for one in (learner, resumed)]
        assert updates[0].metrics == updates[1].metrics
        assert learner.state_hash() == resumed.state_hash()
        batch = batch.after(updates[0])


@pytest.mark.parametrize("num_iterations", [1, 3])
def test_the_reference_is_run_once_for_each_batch(tiny_qwen2, num_iterations):
    learner = make_learner(make_policy(tiny_qwen2), beta=0.04, num_iterations=num_iterations)
    forgetful = make_learner(make_policy(tiny_qwen2), beta=0.04, num_iterations=num_iterations)
    runs = []
    real = learner.policy.reference
    counting = replace(learner.policy)
    object.__setattr__(counting, "reference", lambda: (runs.append(1), real())[1])
    learner.policy = counting
    for seed in range(2):
        batch = make_batch([5, 9], [[4, 5], [3, 8]], seed=seed)
        for _ in range(num_iterations):
            forgetful._referenced = None
            update, same = learner.update(batch), forgetful.update(batch)
            assert (update.metrics, learner.state_hash()) == (same.metrics, forgetful.state_hash())
            batch = batch.after(update)
    assert len(runs) == 2


def test_a_size_that_was_asked_for_is_taken(tiny_qwen2):
    learner = make_learner(make_policy(tiny_qwen2), tokens_per_microbatch=10**6)
    assert learner.update(make_batch([5], [[4, 5]])).metrics["policy/microbatch_tokens"] == 10**6


def test_the_plan_knows_how_the_policy_runs(tiny_qwen2):
    assert pass_of(make_policy(tiny_qwen2), make_config()) == Pass(own_network=True)
    config = make_config(lora={"lora_dropout": 0.1}, gradient_checkpointing=True)
    expected = Pass(own_network=False, has_dropout=True, recomputes=True)
    assert pass_of(make_policy(tiny_qwen2, dropout=0.1), config) == expected


def test_the_plan_of_a_policy_goes_by_all_memory_there_is(tiny_qwen2, monkeypatch):
    policy, load = make_policy(tiny_qwen2), Load(4, 4, longest_prompt=50, longest_completion=500, slots=16)

    def tokens(total: int | None, **changes: object) -> int:
        monkeypatch.setattr(microbatch, "device_bytes", lambda device: total)
        plan = plan_memory(policy, make_config(**changes), load, None)
        assert plan is not None
        return plan.tokens_per_microbatch

    assert tokens(None) == tokens(1 << 34) == 2048
    assert tokens(1 << 20) == 128
    assert tokens(1 << 20, tokens_per_microbatch=1000) == 1000


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_this_machine_has_memory():
    total = device_bytes(torch.device("cpu"))
    assert total is not None
    assert 1 << 28 < total < 1 << 50


LIMITED = """
import resource, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import torch
torch.set_num_threads(1)
from builders import gradients, make_batch, make_learner, make_policy, relative_difference
batch = make_batch([40] * 4, [[256] * 16] * 4)
whole = gradients(make_learner(make_policy(Path({folder!r})), tokens_per_microbatch=256), batch)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (24 << 20), resource.RLIM_INFINITY))
learner = make_learner(make_policy(Path({folder!r})), tokens_per_microbatch=16384)
ours = gradients(learner, batch)
print(learner.tokens_per_microbatch, relative_difference(ours, whole))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is enforced on Linux")
def test_a_process_that_may_not_have_more_memory_learns_in_smaller_passes(tiny_qwen2):
    code = LIMITED.format(tests=TESTS, folder=str(tiny_qwen2))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    tokens, difference = result.stdout.split()
    assert int(tokens) < 16384
    assert float(difference) < 1e-6
