"""The race to a target: its bookkeeping, that both sides have the same start, and one whole race of a toy."""

import json

import pytest

TOY = ("train_steps=2", "prompts_per_step=2", "num_generations=4", "sampling_params.max_tokens=12", "lora.rank=2")
FEW = ("eval.max_prompts=3", "eval.samples_per_prompt=2")


def reply(wall_s, cpu_s, children_s=0.0):
    return {"wall_s": wall_s, "cpu_s": cpu_s, "children_s": children_s, "completion_tokens": 100}


def course(bench, values, wall_s, cpu_s, children_s=0.0):
    """One judged before training and after each second step."""
    made = bench("time_to_target").Course()
    made.judged({"correct": values[0]})
    for value in values[1:]:
        made.add(reply(wall_s, cpu_s, children_s))
        made.add(reply(wall_s, cpu_s, children_s))
        made.judged({"correct": value})
    return made


def test_the_seconds_are_those_up_to_the_first_adapter_at_the_target(bench):
    race = bench("time_to_target")
    courses = {
        "trl": course(bench, [0.1, 0.2, 0.45], wall_s=6.0, cpu_s=4.0),
        "reinforge": course(bench, [0.1, 0.5], wall_s=3.0, cpu_s=0.75, children_s=0.25),
    }
    row = race.seed_summary(7, courses, 0.45)
    assert (row["trl_s"], row["trl_steps"], row["reinforge_s"], row["reinforge_steps"]) == (24.0, 4, 6.0, 2)
    assert row["reinforge_cpu_s"] == 2.0  # the worker of the reward functions included
    assert (row["ratio"], row["cpu_ratio"]) == (4.0, 8.0)
    assert [point["step"] for point in row["trl_curve"]] == [0, 2, 4]
    text = race.table([row], race.total([row]))
    assert "wall: 4.0x of 3.0x, reached" in text
    assert "0: 0.10  2: 0.20  4: 0.45" in text


def test_a_side_that_never_got_there_bounds_the_ratio_or_leaves_none(bench):
    race = bench("time_to_target")
    slow, fast = (course(bench, [0.1, value], wall_s=3.0, cpu_s=1.0) for value in (0.2, 0.5))
    bounded = race.seed_summary(0, {"trl": slow, "reinforge": fast}, 0.45)
    assert not bounded["trl_reached"]
    assert ">1.0x" in race.table([bounded], race.total([bounded]))
    none = race.seed_summary(0, {"trl": fast, "reinforge": slow}, 0.45)
    assert none["ratio"] is None
    assert "Reinforge did not get there, MISSED" in race.table([none], race.total([none]))


def test_the_mean_is_of_seconds_not_of_ratios(bench):
    race = bench("time_to_target")
    rows = [
        race.seed_summary(
            seed,
            {
                "trl": course(bench, [0.1, 0.5], wall_s=trl_s, cpu_s=trl_s),
                "reinforge": course(bench, [0.1, 0.5], wall_s=our_s, cpu_s=our_s),
            },
            0.45,
        )
        for seed, trl_s, our_s in ((0, 10.0, 1.0), (1, 10.0, 4.0))
    ]
    assert race.total(rows)["ratio"] == 4.0


def test_a_job_survives_its_file(bench, tmp_path):
    job = bench("countdown").Job(str(tmp_path), 2, 8, (*TOY, "seed=3"))
    job.write(tmp_path / "job.json")
    read = bench("countdown").Job.read(tmp_path / "job.json")
    assert read == job
    assert read.config().seed == 3
    assert read.config().data.heldout_path is not None
    assert read.training_config().data.heldout_path is None
    assert [read.adapter_after("trl", step) is not None for step in (1, 2, 3, 4)] == [False, True, False, True]


def test_cpu_seconds_of_child_processes_are_counted(bench):
    import subprocess
    import sys

    protocol = bench("protocol")
    clock = protocol.StepClock()
    spin = "import sys, time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)\nsys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", spin], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"done\n"
        assert clock.times()["children_s"] >= 0.29
        child.stdin.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_both_sides_begin_alike(bench, tmp_path):
    """The same adapter, learning rates and rewards."""
    from peft import get_peft_model_state_dict

    from reinforge.learner.schedule import learning_rate_at

    countdown = bench("countdown")
    job = countdown.Job(str(tmp_path), 1, 8, (*TOY[1:], "train_steps=60", "seed=5"))
    trainer = bench("countdown_trl").make_trainer(job)
    built = countdown.build(job.training_config())
    try:
        theirs, ours = get_peft_model_state_dict(trainer.model), built.policy.adapter(0).weights
        assert theirs.keys() == ours.keys()
        assert all(theirs[name].equal(ours[name]) for name in ours)
        config = built.task.config
        rates = []
        for _ in range(60):
            rates.append(trainer.lr_scheduler.get_last_lr()[0])
            trainer.optimizer.step()
            trainer.lr_scheduler.step()
        expected = [
            learning_rate_at(s, peak=1.5e-3, total_steps=60, course="linear", warmup_ratio=0.07, min_lr_ratio=0.1)
            for s in range(60)
        ]
        assert rates == pytest.approx(expected, rel=1e-12)
        assert len(trainer.train_dataset) == len(built.task.train_prompts)
        right = "<think>9*5=45</think><answer>1+(9+5)</answer>"
        columns = {"numbers": ["9 1 5"] * 2, "target": ["15"] * 2}
        judged = [f(prompts=["", ""], completions=[right, "no"], **columns) for f in trainer.reward_funcs]
        assert judged == [[1.0, 0.0], [1.0, 0.0]]
        assert trainer.args.reward_weights == [config.reward_fns.weights[n] for n in ("format", "correct")]
    finally:
        built.close()


@pytest.mark.slow
@pytest.mark.parametrize("trl_generate_batch", [False, True])
def test_a_toy_race_runs_to_its_last_step(bench, monkeypatch, tmp_path, trl_generate_batch):
    """Nobody can be twice as right as always, so both make every step."""
    race, countdown, vs_trl = bench("time_to_target"), bench("countdown"), bench("vs_trl")
    monkeypatch.setitem(vs_trl.ONE_THREAD, "PYTHONWARNINGS", "ignore")
    job = countdown.Job(str(tmp_path), 1, 8, (*TOY, *FEW, "seed=1"), trl_generate_batch)
    with countdown.HeldOut(job) as held_out:
        row = json.loads(json.dumps(race.run_seed(job, held_out, target=2.0)))
    for side in race.SIDES:
        assert [point["step"] for point in row[f"{side}_curve"]] == [0, 1, 2]
        assert row[f"{side}_curve"][0]["completions"] == 6
        assert 0 < row[f"{side}_completion_tokens"] <= 2 * 8 * 12
    assert row["trl_curve"][0] == row["reinforge_curve"][0]
