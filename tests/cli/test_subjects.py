"""`reinforge eval` and `reinforge chat` on a model, an adapter, a run and a checkpoint."""

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from reinforge.cli.main import run as reinforge
from reinforge.config import LoraParams
from reinforge.inference import prefill
from reinforge.policy.model import load_policy


def evaluation_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, float]:
    assert reinforge(["eval", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def figures(evaluation: dict[str, float]) -> tuple[float, ...]:
    return tuple(evaluation[name] for name in ("pass_at_1", "reward_mean", "num_prompts", "num_samples"))


def test_eval_of_a_run_repeats_the_runs_own_evaluations(trained: Path, capsys: pytest.CaptureFixture[str]):
    runs = trained / "runs"
    assert reinforge(["runs", "show", "first", "--runs-dir", str(runs), "--json"]) == 0
    (_, after) = json.loads(capsys.readouterr().out)["evaluations"]
    by_name = evaluation_of(capsys, "first", "--runs-dir", str(runs))
    at_step = evaluation_of(capsys, f"{runs / 'first'}@3")
    config = ("--config", str(trained / "train.yaml"))
    of_adapter = evaluation_of(capsys, str(runs / "first" / "adapter"), *config)
    assert figures(by_name) == figures(at_step) == figures(of_adapter) == figures(after)


def test_eval_of_a_model_needs_a_config(trained: Path, tiny_qwen2: Path, capsys: pytest.CaptureFixture[str]):
    assert reinforge(["eval", str(tiny_qwen2)]) == 2
    assert "Add --config CONFIG." in capsys.readouterr().err
    config = ("--config", str(trained / "train.yaml"))
    of_model = evaluation_of(capsys, str(tiny_qwen2), *config, "-o", "eval.samples_per_prompt=1")
    assert of_model["num_samples"] == 2


def test_eval_takes_data_from_here_and_prints_a_table(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "other.jsonl").write_text('{"prompt": "a", "number": 1}\n{"prompt": "b", "number": 2}\n' * 2)
    monkeypatch.chdir(tmp_path)
    assert reinforge(["eval", "first", "--runs-dir", str(trained / "runs"), "--data", "other.jsonl"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "4 prompts, 8 completions"
    assert [line.split("  ")[0] for line in lines[1:4]] == ["pass@1, sampled", "pass@1, greedy", "reward"]


def test_overrides_without_a_config_are_refused(trained: Path, capsys: pytest.CaptureFixture[str]):
    assert reinforge(["eval", "first", "--runs-dir", str(trained / "runs"), "-o", "seed=1"]) == 2
    assert "Add --config CONFIG." in capsys.readouterr().err


@pytest.mark.parametrize("command", [["chat"], ["eval"], ["eval", "--config", "train.yaml"]])
def test_a_name_that_is_nothing_is_no_run_either(
    trained: Path, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(trained)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("frist", "frist@2"):
        assert reinforge([command[0], name, *command[1:]]) == (2 if command == ["eval"] else 4)
        err = capsys.readouterr().err
        assert "There is no run frist here or in runs/" in err
        assert "Did you mean first?" in err


def chat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, *arguments: str) -> str:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert reinforge(["chat", *arguments]) == 0
    return capsys.readouterr().out


def test_chat_answers_and_remembers(trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    subject = (str(trained / "runs" / "first"), "--max-tokens", "6", "--temperature", "0")
    alone = chat(monkeypatch, capsys, "hello\n", *subject)
    assert alone
    assert chat(monkeypatch, capsys, "hello\n\n/new\nhello\n", *subject) == alone * 2
    assert chat(monkeypatch, capsys, "hello\nhello\n", *subject) != alone * 2
    assert chat(monkeypatch, capsys, "hello\n", *subject, "--system", "Be brief.") != alone


def test_a_turn_of_a_chat_runs_only_what_is_new(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    num_run: list[int] = []
    original = prefill.run_behind

    def counted(network, tokens, before):
        num_run.append(sum(len(ids) - (p.length if p else 0) for ids, p in zip(tokens, before, strict=True)))
        return original(network, tokens, before)

    monkeypatch.setattr(prefill, "run_behind", counted)
    subject = (str(trained / "runs" / "first"), "--max-tokens", "6", "--system", "Be brief and polite, always.")
    chat(monkeypatch, capsys, "hello\nhello\nhello\n/new\nhello\n", *subject)
    assert len(num_run) == 4
    assert max(num_run[1:]) < num_run[0] - 15, num_run


def test_chat_with_a_run_uses_the_system_prompt_it_was_trained_with(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    copy = tmp_path / "run"
    shutil.copytree(trained / "runs" / "first", copy)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["data"]["system_prompt"] = "Be brief."
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    options = ("--max-tokens", "6", "--temperature", "0")
    expected = chat(monkeypatch, capsys, "hello\n", str(trained / "runs" / "first"), *options, "--system", "Be brief.")
    assert chat(monkeypatch, capsys, "hello\n", str(copy), *options) == expected


def test_chat_draws_by_its_seed(tiny_qwen2: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    first, again, other = (
        chat(monkeypatch, capsys, "hello\n", str(tiny_qwen2), "--max-tokens", "6", "--seed", seed)
        for seed in ("1", "1", "2")
    )
    assert first == again != other


def test_a_long_chat_forgets_its_beginning_and_a_long_message_is_refused(
    tiny_qwen2: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The window is 512 tokens, one per byte: messages of 150 fit three times, not four."""
    arguments = (str(tiny_qwen2), "--max-tokens", "4", "--temperature", "0")
    message = "x" * 150 + "\n"
    out = chat(monkeypatch, capsys, message * 6, *arguments)
    assert out
    monkeypatch.setattr("sys.stdin", io.StringIO("x" * 600 + "\n"))
    assert reinforge(["chat", *arguments]) == 2
    assert "Shorten it, or lower --max-tokens." in capsys.readouterr().err
    assert reinforge(["chat", str(tiny_qwen2), "--max-tokens", "512"]) == 2
    assert "Leave it out (256), or give less." in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_a_message_that_is_too_long_is_told_and_the_chat_goes_on(
    tiny_qwen2: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    arguments = (str(tiny_qwen2), "--max-tokens", "4", "--temperature", "0")
    expected = chat(monkeypatch, capsys, "hello\nagain\n", *arguments)
    assert expected != chat(monkeypatch, capsys, "hello\n/new\nagain\n", *arguments)
    monkeypatch.setattr("sys.stdin", Terminal("hello\n" + "x" * 600 + "\nagain\n"))
    assert reinforge(["chat", *arguments]) == 0
    out, err = capsys.readouterr()
    assert out == expected
    assert "Shorten it, or lower --max-tokens." in err


def test_chat_with_several_answers_as_each_alone_does(
    trained: Path, tiny_qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The base, a run's adapter with large weights, and an adapter of another rank on some layers."""
    run = tmp_path / "run"
    shutil.copytree(trained / "runs" / "first", run)
    strengthened(run / "adapter")
    policy = load_policy(str(tiny_qwen2), LoraParams(rank=3, target_modules=("v_proj", "up_proj")), seed=2)
    policy.save_adapter(tmp_path / "other")
    strengthened(tmp_path / "other")
    subjects = [str(tiny_qwen2), str(run), str(tmp_path / "other")]
    options = ("--max-tokens", "6", "--temperature", "0")
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\nagain\n"))
    assert reinforge(["chat", *subjects, subjects[1], *options]) == 0
    together, told = capsys.readouterr()
    assert "What is named twice answers once." in told
    alone = [chat(monkeypatch, capsys, "hello\nagain\n", subject, *options) for subject in subjects]
    first = [chat(monkeypatch, capsys, "hello\n", subject, *options) for subject in subjects]
    assert len(set(alone)) == 3
    expected = [f"[{subject}]\n{answer}" for subject, answer in zip(subjects, first, strict=True)]
    expected += [
        f"[{subject}]\n{both.removeprefix(one)}" for subject, both, one in zip(subjects, alone, first, strict=True)
    ]
    assert together == "".join(expected)


def strengthened(adapter: Path) -> None:
    """So that it changes the answers."""
    file = adapter / "adapter_model.safetensors"
    draw = torch.Generator().manual_seed(1)
    save_file({name: 0.3 * torch.randn(w.shape, generator=draw) for name, w in load_file(file).items()}, file)


def test_chat_with_several_bases_is_refused(
    trained: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run = str(trained / "runs" / "first")
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    assert reinforge(["chat", run, str(tiny_llama)]) == 2
    err = capsys.readouterr().err
    assert f"{run} is on the base model " in err
    assert f"{tiny_llama} on {tiny_llama}" in err
    assert "share one base model" in err
