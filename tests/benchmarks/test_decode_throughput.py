"""The benchmark of drawing completions: its bookkeeping, and one run of it on a toy. Nothing here asserts a speed."""

import json

import pytest


@pytest.fixture
def decode(bench):
    return bench("decode_throughput")


def make_job(bench):
    workload = bench("workload")
    size = workload.ModelSize(vocab_size=64, hidden_size=32, num_hidden_layers=2, intermediate_size=48)
    shape = workload.Shape("toy", 6, 20, skewed=True)
    return workload.Job(shape, "none", 2, 4, steps=1, trl_rows=1, size=size)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_medians_stand_beside_the_floor(bench, decode, monkeypatch):
    monkeypatch.setattr(decode, "measure_rates", lambda size, rows: bench("floor").Rates(1e9, 1e9, 1e9))
    seconds = {"reinforge": [1.0, 3.0, 2.0], "generate": [4.0, 4.0, 5.0], "generate_batch": [8.0] * 3}
    row = decode.summary(make_job(bench), seconds)
    assert (row["reinforge_s"], row["generate_ratio"], row["generate_batch_ratio"]) == (2.0, 2.0, 4.0)
    assert row["generate_tokens_per_s"] == row["completion_tokens"] / 4.0
    assert row["floor_s"] == bench("floor").step_floor(make_job(bench), decode.measure_rates(None, 0)).prefill_s + (
        bench("floor").step_floor(make_job(bench), decode.measure_rates(None, 0)).decode_s
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_side_draws_the_tokens_of_a_toy(bench, decode):
    job = make_job(bench)
    (row,) = json.loads(json.dumps(decode.measure([job.shape], prompts=2, num_generations=4, repeats=1, size=job.size)))
    assert row["completion_tokens"] == sum(bench("workload").completion_lengths(job.shape, 8))
    assert all(row[f"{side}_s"] > 0 for side in decode.SIDES)
    assert "toy P=2 G=4" in decode.table([row])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_side_that_draws_other_lengths_ends_the_benchmark(decode):
    with pytest.raises(SystemExit, match="generate drew 7 completion tokens, the job has 8"):
        decode._cpu_seconds(lambda work: 7, None, 8, "generate")
