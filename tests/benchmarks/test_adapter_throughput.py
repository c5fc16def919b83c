"""The benchmark of several adapters: its bookkeeping, and that requests get their adapters. No speed is asserted."""

import json

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def toy(bench, monkeypatch):
    """The benchmark with few adapters, short requests, and a small model."""
    made, workload = bench("adapter_throughput"), bench("workload")
    monkeypatch.setattr(made, "NUM_REQUESTS", 6)
    monkeypatch.setattr(made, "NUM_ADAPTERS", 3)
    monkeypatch.setattr(made, "SHAPE", workload.Shape("toy", 5, 4))
    size = workload.ModelSize(vocab_size=64, hidden_size=32, num_hidden_layers=2, intermediate_size=48)
    return made, size


def test_every_side_draws_the_tokens_of_a_toy(toy):
    made, size = toy
    found = json.loads(json.dumps(made.measure(size, repeats=1)))
    rows = {row["name"]: row for row in found["sides"]}
    assert list(rows) == list(made.LABELS)
    assert all(row["s"] > 0 for row in rows.values())
    assert rows["in_turn"]["first_token_mean_s"] < rows["in_turn"]["first_token_max_s"]
    assert 0 < found["max_logprob_difference"] < 1e-5
    assert "PEFT, eight adapters in one batch" in made.table(found)


def test_ratios_are_over_our_batch_of_eight(toy):
    made, _ = toy
    drawings = {"eight": made.Drawing(first_token_s=[0.1, 0.1]), "peft_eight": made.Drawing(first_token_s=[0.1, 0.3])}
    rows = {row["name"]: row for row in made.summary({"eight": [2.0, 1.0, 3.0], "peft_eight": [8.0]}, drawings)}
    assert rows["peft_eight"]["ratio"] == 4.0
    assert rows["eight"]["tokens_per_s"] == 6 * 4 / 2.0
    assert (rows["peft_eight"]["first_token_mean_s"], rows["peft_eight"]["first_token_max_s"]) == (0.2, 0.3)


def test_logprobs_are_compared_until_the_tokens_part(toy):
    made, _ = toy
    one, other = (
        {0: made.Completion(0, ids, "", "length", logprobs, logprobs, 0)}
        for ids, logprobs in (((1, 2, 3), (-1.0, -2.0, -3.0)), ((1, 5, 3), (-1.5, -9.0, -9.0)))
    )
    assert made.logprob_difference(one, other) == 0.5


def test_each_request_has_its_adapter_on_every_side(toy, bench, tmp_path):
    """The engine's logprobs of what it drew, with adapters in one batch and one after the other, against PEFT's."""
    import torch
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    from reinforge.types import SampleRequest

    made, size = toy
    folder = tmp_path / "model"
    bench("workload").write_model(folder, size)
    lora = made.LORA
    policy = made.load_policy(str(folder), lora, seed=0, dtype="float32", device="cpu")
    adapters = made.make_adapters(policy, 3)
    names = list(adapters)
    renderer = made.Renderer.from_folder(folder)
    prompts = [renderer.prompt(made.Example(i, f"w{2 + i} w7 w9")) for i in range(3)]
    ours = made.Ours(policy, adapters, prompts)
    requests = [SampleRequest(p, 1, (0, 0, i), adapter=names[i]) for i, p in enumerate(prompts)]
    drawn = dict(ours.shared.sample(requests))
    config = LoraConfig(task_type="CAUSAL_LM", r=lora.rank, lora_alpha=lora.lora_alpha, target_modules="all-linear")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), config).eval()
    for place, name in enumerate(names):
        set_peft_model_state_dict(model, dict(adapters[name].weights))
        ids = torch.tensor([[*prompts[place].token_ids, *drawn[place].token_ids]])
        logprobs = model(ids).logits[0].log_softmax(-1)[len(prompts[place].token_ids) - 1 : -1]
        expected = logprobs.gather(1, torch.tensor(drawn[place].token_ids)[:, None])[:, 0]
        assert drawn[place].logprobs == pytest.approx(expected.tolist(), abs=1e-4)
