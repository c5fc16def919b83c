"""The benchmark against TRL: its bookkeeping, and one whole run of it on a toy. Nothing here asserts a speed."""

import json
import runpy

import pytest
import torch

from reinforge.data.order import PromptOrder


def reply(cpu_s, tokens, **changes):
    times = {"rollout_s": cpu_s / 4, "update_s": cpu_s * 3 / 4, "cpu_s": cpu_s, "wall_s": 2 * cpu_s}
    return {**times, "reward_wait_s": 0.1, "completion_tokens": tokens, "peak_bytes": 100} | changes


def make_job(bench, **changes):
    workload = bench("workload")
    values = {"shape": workload.SHAPES["short"], "folder": "none", "prompts_per_step": 2, "num_generations": 4}
    return workload.Job(**values | {"steps": 3, "trl_rows": 4} | changes)


@pytest.mark.parametrize("num_rows", [2, 32, 64])
def test_skewed_lengths_are_within_bounds_and_exactly_one_is_longest(bench, num_rows):
    workload = bench("workload")
    lengths = workload.completion_lengths(workload.SHAPES["long_completion"], num_rows)
    assert lengths == workload.completion_lengths(workload.SHAPES["long_completion"], num_rows)
    assert len(lengths) == num_rows
    assert sorted(lengths)[-1] == 512 > sorted(lengths)[-2]
    assert min(lengths) >= 16


def test_every_prompt_has_as_many_words_as_its_shape_has_tokens(bench):
    prompts = bench("workload").prompts(make_job(bench))
    assert [len(prompt.split()) for prompt in prompts] == [64] * 6
    assert len(set(prompts)) == 6


@pytest.mark.parametrize(("shape", "teaching"), [("short", 2), ("short_half_equal", 1)])
def test_as_many_groups_of_every_step_teach_as_the_shape_says(bench, tmp_path, shape, teaching):
    workload = bench("workload")
    (tmp_path / "noise.py").write_text(workload.REWARD_SOURCE)
    noise = runpy.run_path(str(tmp_path / "noise.py"))["noise"]
    prompts = workload.prompts(make_job(bench, shape=workload.SHAPES[shape]))
    order = PromptOrder(len(prompts), seed=0)
    for step in range(3):
        drawn = [prompts[order.at(2 * step + place)[0]] for place in range(2)]
        rewards = [noise([prompt] * 3, ["w1", "w2", "w3"]) for prompt in drawn]
        assert sum(len(set(group)) == 3 for group in rewards) == teaching
        assert sum(group == [0.5] * 3 for group in rewards) == 2 - teaching


def test_a_job_on_a_gpu_is_in_bfloat16_on_both_sides_and_its_keys_are_half_as_large(bench, tmp_path):
    worker, floor = bench("reinforge_worker"), bench("floor")
    jobs = [make_job(bench, device=device, steps=1) for device in ("cpu", "cuda")]
    configs = [worker.make_config(job) for job in jobs]
    assert [(config.device, config.dtype) for config in configs] == [("cpu", "float32"), ("cuda", "bfloat16")]
    rates = floor.Rates(wide_flops=1e30, narrow_flops=1e30, read_bytes=1)
    on_cpu, on_gpu = (floor.step_floor(job, rates).decode_s for job in jobs)
    assert on_cpu == pytest.approx(2 * on_gpu)
    settings = bench("trl_worker").device_settings(jobs[1])
    assert settings == {"use_cpu": False, "bf16": True}


def test_the_large_models_and_a_gpu_that_is_not_there_are_refused(bench, monkeypatch, capsys):
    vs_trl = bench("vs_trl")
    monkeypatch.setattr("sys.argv", ["vs_trl.py", "--size", "0.5B"])
    with pytest.raises(SystemExit):
        vs_trl.main()
    assert "it is for --device cuda" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["vs_trl.py", "--size", "0.5B", "--device", "cuda"])
    with pytest.raises(SystemExit, match="torch sees no CUDA GPU"):
        vs_trl.main()


def test_a_job_survives_its_file(bench, tmp_path):
    job = make_job(bench, shape=bench("workload").SHAPES["long_completion"])
    job.write(tmp_path / "job.json")
    assert bench("workload").Job.read(tmp_path / "job.json") == job


def test_the_summary_takes_medians_without_the_warm_up_and_puts_trl_over_ours(bench):
    tokens = 8 * 64
    replies = {
        "trl": [reply(s, tokens, peak_bytes=300) for s in (99.0, 6.0, 8.0, 7.0)],
        "reinforge": [reply(s, tokens) for s in (50.0, 3.0, 3.5, 4.0)],
    }
    row = bench("vs_trl").summary(make_job(bench), replies, {"trl": 10, "reinforge": 20})
    assert (row["trl_s"], row["reinforge_s"], row["ratio"]) == (7.0, 3.5, 2.0)
    assert (row["wall_ratio"], row["memory_ratio"], row["counted_steps"]) == (2.0, 3.0, 3)
    assert row["reinforge_tokens_per_s"] == tokens / 3.5


def test_ratios_stand_beside_their_targets(bench):
    vs_trl, shapes = bench("vs_trl"), bench("workload").SHAPES
    rows = []
    for name, trl_s in (("short", 6.0), ("long_prompt", 6.0), ("short_half_equal", 12.0)):
        job = make_job(bench, shape=shapes[name], num_generations=16)
        sides = {"trl": [reply(trl_s, 2048, peak_bytes=300)] * 2, "reinforge": [reply(2.0, 2048)] * 2}
        rows.append(vs_trl.summary(job, sides, {"trl": 10, "reinforge": 20}))
    assert [row["target"] for row in rows] == [2.5, 8.0, None]
    text = vs_trl.table(rows)
    assert "target: 3.0x of 2.5x, reached" in text
    assert "target: 3.0x of 8.0x, MISSED, memory 3.0x of 2.0x, reached" in text
    assert "further than short: update 2.0x of 1.8x, reached, step 2.0x of 1.2x, reached" in text


def test_a_side_that_drew_other_lengths_ends_the_benchmark(bench):
    replies = {"trl": [reply(1.0, 512)] * 2, "reinforge": [reply(1.0, 511)] * 2}
    with pytest.raises(SystemExit, match="reinforge drew 511 completion tokens on short, the job has 512"):
        bench("vs_trl").summary(make_job(bench), replies, {"trl": 1, "reinforge": 1})


def test_the_floor_counts_a_hand_made_model(bench):
    """One layer of 2 x 2 with one head: 4 weights each in q, k, v, o, and 3 x 2 x 3 in the MLP."""
    floor, workload = bench("floor"), bench("workload")
    size = workload.ModelSize(
        vocab_size=5,
        hidden_size=2,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        intermediate_size=3,
    )
    assert floor.linear_parameters(size) == 4 * 4 + 18
    assert floor.lora_parameters(size) == 16 * (4 * (2 + 2) + 3 * (2 + 3))
    job = make_job(bench, shape=workload.Shape("toy", 2, 1), prompts_per_step=1, num_generations=1, size=size)
    second = floor.step_floor(job, floor.Rates(1.0, 1.0, 1.0))
    assert second.prefill_s == 2 * 34 * 2 + 4 * 2 * 2  # two tokens through the weights, two (2 x 2 / 2) seen keys
    assert second.decode_s == 2 * (34 + 10) + 4 * 2 * 2.5 + 2.5 * 2 * 2 * 4  # one token; 2.5 keys; their bytes


@pytest.mark.slow
def test_both_trainers_run_a_toy_and_agree(bench, monkeypatch):
    """Three processes start torch, so this takes its time. Both sides report the tokens that were forced."""
    workload, vs_trl = bench("workload"), bench("vs_trl")
    monkeypatch.setitem(vs_trl.ONE_THREAD, "PYTHONWARNINGS", "ignore")
    size = workload.ModelSize(vocab_size=64, hidden_size=32, num_hidden_layers=2, intermediate_size=48)
    shape = workload.Shape("toy", 6, 20, skewed=True)
    result = vs_trl.measure(
        [shape], prompts_per_step=2, counted_steps=1, budget_s=0.0, num_generations=4, trl_rows=4, size=size
    )
    (row,) = json.loads(json.dumps(result))
    assert row["name"] == "toy"
    assert row["completion_tokens"] == sum(workload.completion_lengths(shape, 8))
    assert row["max_logprob_difference"] < 1e-5
    assert row["gradient_cosine"] == pytest.approx(1.0, abs=1e-9)
    assert row["ratio"] == row["trl_s"] / row["reinforge_s"]
    assert "toy P=2 G=4" in vs_trl.table([row])
