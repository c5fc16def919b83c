"""Config files: what is read, what is refused and in which words, and that a stored config means the same."""

import shlex
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reinforge.config import GRPOConfig
from reinforge.config_file import load_config, to_yaml
from reinforge.config_problems import ALIASES, config_keys
from reinforge.errors import ConfigError, ReinforgeError, UsageError

MINIMAL = "base_model: org/model\nreward_fns:\n  functions: {right: rewards.py:right}\n"


def load(folder: Path, text: str, *overrides: str, name: str = "train.yaml") -> GRPOConfig:
    (folder / name).write_text(text)
    return load_config([folder / name], overrides)


def problems(folder: Path, text: str, *overrides: str, name: str = "train.yaml") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *overrides, name=name)
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def test_files_merge_left_to_right_and_overrides_win(tmp_path: Path):
    (tmp_path / "a.yaml").write_text(MINIMAL + "seed: 1\nlora: {rank: 8, lora_alpha: 4}\n")
    (tmp_path / "b.toml").write_text('seed = 2\n[lora]\nrank = 4\n[reward_fns.functions]\nshort = "s.py:short"\n')
    config = load_config([tmp_path / "a.yaml", tmp_path / "b.toml"], ["lora.rank=2", "sampling_params.stop=[A, 'no']"])
    assert (config.seed, config.lora.rank, config.lora.lora_alpha) == (2, 2, 4)
    assert config.sampling_params.stop == ("A", "no")
    assert set(config.reward_fns.functions) == {"right", "short"}


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e-6", 1e-6), ("1E+0", 1.0), (".5", 0.5), ("1.", 1.0), ("3", 3.0), ("+0.25", 0.25), ("null", None), ("", None)],
)
def test_numbers_are_read_as_yaml_1_2_reads_them(tmp_path: Path, written: str, value: float | None):
    assert load(tmp_path, MINIMAL + f"learning_rate: {written}\n").learning_rate == value


@pytest.mark.parametrize("text", ["no", "off", "12:30:00", "1_000", "010", "2024-01-01", "0x1F", "y", "1:2", "=", "<<"])
def test_texts_that_yaml_1_1_misreads_stay_texts(tmp_path: Path, text: str):
    assert load(tmp_path, MINIMAL + f"data: {{subset: {text}}}\n").data.subset == text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("data: {subset: 1.10}", "train.yaml:4  data.subset = 1.10, but it must be a text"),
        ("gradient_checkpointing: off", 'train.yaml:4  gradient_checkpointing = "off", but it must be true or false'),
        ("train_steps: 1_000", 'train.yaml:4  train_steps = "1_000", but it must be a whole number.'),
        ("train_steps: 10.0", "train.yaml:4  train_steps = 10.0, but it must be a whole number."),
        ("train_steps: true", "train.yaml:4  train_steps = true, but it must be a whole number."),
        ('seed: "7"', 'train.yaml:4  seed = "7", but it must be a whole number.'),
        ("num_generations: 1", "train.yaml:4  num_generations = 1, but it must be at least 2."),
        ("learning_rate: .nan", "train.yaml:4  learning_rate = .nan, but it must be a finite number."),
        (
            "loss_type: ppo",
            "train.yaml:4  loss_type = \"ppo\", but it must be 'grpo', 'bnpo', 'dr_grpo', 'dapo' or 'cispo'.",
        ),
        ("lora: 3", "train.yaml:4  lora = 3, but it must be a table of keys and values."),
        ("lora: {target_modules: [a, 1]}", "train.yaml:4  lora.target_modules.1 = 1, but it must be a text"),
        ("lora: {target_modules: x}", "but it must be a list or must be 'all-linear'."),
        ("overlong: {penalty: 2}", "train.yaml:4  overlong.buffer_tokens is not set: Tokens before"),
        ("delta: 1.1", "train.yaml:4  delta = 1.1 never acts: it must exceed 1 + epsilon_high = 1.2."),
        ("temperature: 0.9", "train.yaml:4  Unknown key temperature. Did you mean sampling_params.temperature?"),
        ("learning_rte: 1", "train.yaml:4  Unknown key learning_rte. Did you mean learning_rate?"),
        ("lora: {rnk: 1}", "train.yaml:4  Unknown key lora.rnk. Did you mean lora.rank?"),
        ("lora: {r: 8}", "train.yaml:4  Unknown key lora.r. Did you mean lora.rank?"),
        ("lora_r: 8", "train.yaml:4  Unknown key lora_r. Did you mean lora.rank?"),
        ("eval: {samples: 8}", "train.yaml:4  Unknown key eval.samples. Did you mean eval.samples_per_prompt?"),
        ("eval: {max_prompt: 8}", "train.yaml:4  Unknown key eval.max_prompt. Did you mean eval.max_prompts?"),
        (
            "data: {max_tokens: 8}",
            "Unknown key data.max_tokens. Did you mean sampling_params.max_tokens?",
        ),
        ("zzz: 1", "train.yaml:4  Unknown key zzz. Known here: adam_beta1"),
        ("base_model: x", "train.yaml:4  base_model is set twice (first at train.yaml:1). Keep one."),
        ("seed: [1", "train.yaml:5  This is not YAML"),
        ("data:\n  prompt_template: {a} x", 'If a text is meant, quote it: prompt_template: "{a} x"'),
        (
            "seed: !!python/name:os.system x",
            "train.yaml:4  The tag tag:yaml.org,2002:python/name:os.system is not read.",
        ),
        ("seed: &a 1\nthreads: *a", "train.yaml  Aliases (*name) are not read."),
        ("? [a]\n: 1", "train.yaml:4  A key must be a word"),
        ('data: {subset: "\\ud800"}', "train.yaml:4  '\\ud800' is not a str."),
        ("seed: " + "9" * 5000, "is not a int."),
        ("seed: " + "[" * 1000 + "]" * 1000, "train.yaml  Values are nested too deeply."),
    ],
)
def test_each_mistake_is_told_with_its_place(tmp_path: Path, line: str, message: str):
    found = problems(tmp_path, MINIMAL + line + "\n")
    assert len(found) == 1
    assert message in found[0]


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(tmp_path: Path):
    found = problems(tmp_path, "seed: x\nlora: {rank: 0}\ntrain_stepz: 3\n", "slots=-1")
    assert [line.partition("  ")[0] for line in found] == [
        "train.yaml", "train.yaml", "train.yaml:1", "train.yaml:2", "train.yaml:3", "-o slots=-1",
    ]  # fmt: skip
    assert found[0] == (
        "train.yaml  base_model is not set: Local folder or hub id of a Hugging Face causal language model"
        " (safetensors). Add it."
    )


def test_a_text_that_yaml_takes_for_something_else_is_shown_quoted(tmp_path: Path):
    for value in ("{a} x", "{a}", "1.10", "[x] 'y'"):
        with pytest.raises(ConfigError) as caught:
            load(tmp_path, MINIMAL, f"data.prompt_template={value}")
        (_, option, quoted) = str(caught.value).rpartition(" -o ")
        (override,) = shlex.split(quoted)
        assert option
        assert load(tmp_path, MINIMAL, override).data.prompt_template == value


def test_other_names_lead_to_keys_that_exist_and_hide_none():
    keys = set(config_keys())
    assert set(ALIASES.values()) <= keys
    assert not set(ALIASES) & keys


def test_the_known_keys_are_listed_once_for_each_table(tmp_path: Path):
    found = problems(tmp_path, MINIMAL + "zzz: 1\nqqq: 1\nlora: {zzz: 1, qqq: 2}\n")
    listed = [line.partition("Known here: ")[2].partition(",")[0] for line in found]
    assert listed == ["adam_beta1", "", "lora_alpha", ""]


def test_toml_mistakes_have_lines_too(tmp_path: Path):
    head = 'base_model = "org/m"\n[reward_fns]\nfunctions = {r = "r.py:r"}\n'
    assert problems(tmp_path, head + "[lora]\n# rank\nrnk = 3\n", name="t.toml") == [
        "t.toml:6  Unknown key lora.rnk. Did you mean lora.rank?"
    ]
    assert problems(tmp_path, head + "[data]\nsubset = 2024-01-01\n", name="t.toml") == [
        "t.toml:5  data.subset is a date or time. If a text is meant, put it in quotes."
    ]
    assert problems(tmp_path, head + "seed = \n", name="t.toml")[0].startswith("t.toml:4  This is not TOML")
    text = head + '[data]\nsystem_prompt = """\nseed = 1\n[lora]\n"""\nsplit = 3\n'
    assert problems(tmp_path, text, name="t.toml") == [
        "t.toml:9  data.split = 3, but it must be a text (in quotes if it looks like something else)."
    ]


def test_files_that_are_no_configs(tmp_path: Path):
    (tmp_path / "train.yml").write_text(MINIMAL)
    with pytest.raises(UsageError, match=r"There is no config file .*tran.yml. That folder has train.yml."):
        load_config([tmp_path / "tran.yml"])
    with pytest.raises(UsageError, match="Is a directory"):
        load_config([tmp_path])
    with pytest.raises(UsageError, match=r"ends in \.yaml, \.yml or \.toml"):
        load(tmp_path, "{}", name="train.json")
    (tmp_path / "utf16.yaml").write_text(MINIMAL, encoding="utf-16")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config([tmp_path / "utf16.yaml"])
    with pytest.raises(UsageError, match="written key=value"):
        load(tmp_path, MINIMAL, "lora.rank")
    assert problems(tmp_path, "- a\n") == ["train.yaml:1  A config is a table of `key: value` lines, not ['a']."]


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path):
    assert load(tmp_path, "\ufeff" + MINIMAL).base_model == "org/model"


def test_paths_are_absolute_from_the_folder_of_the_file_that_sets_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for folder in ("one/model", "two", "here"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "one" / "a.yaml").write_text(MINIMAL.replace("org/model", "model") + "data: {path: org/set}\n")
    (tmp_path / "two" / "b.yaml").write_text("reward_fns: {functions: {short: ../s.py:short}}")
    monkeypatch.chdir(tmp_path / "here")
    config = load_config(["../one/a.yaml", "../two/b.yaml"], ["data.heldout_path=h.jsonl"])
    assert config.base_model == f"{tmp_path}/one/model"
    assert config.reward_fns.functions == {
        "right": f"{tmp_path}/one/rewards.py:right",
        "short": f"{tmp_path}/s.py:short",
    }
    assert config.data.path == "org/set"  # nothing of that name here: a hub id
    assert config.data.heldout_path == f"{tmp_path}/here/h.jsonl"


TEXTS = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ["a\x85b", "a\u2028 b", "\ufeffa\r\n\tb ", "no", "1e-6", "010", "1.10", "null", "~", "12:30:00"]
)


@example(subset="a\x85b", stop=["\u2028"], rate=1e-06, seed=0, name="\x85")
@given(
    subset=TEXTS,
    stop=st.lists(TEXTS.filter(bool), max_size=3),
    rate=st.none() | st.floats(min_value=1e-300, max_value=1e300),
    seed=st.integers(-(10**20), 10**20),
    name=TEXTS,
)
def test_what_to_yaml_writes_loads_as_an_equal_config(tmp_path_factory, subset, stop, rate, seed, name):
    config = GRPOConfig.model_validate(
        {
            "base_model": "org/model",
            "reward_fns": {"functions": {name: "/r.py:right"}, "weights": {name: 0.1}},
            "data": {"subset": subset},
            "sampling_params": {"stop": tuple(stop)},
            "learning_rate": rate,
            "seed": seed,
        }
    )
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8", newline="")
    assert load_config([path]) == config


def test_a_python_function_is_stored_as_its_address():
    config = GRPOConfig(base_model="org/m", reward_fns={"functions": {"a": load, "b": len}})
    written = to_yaml(config)
    assert f"a: {Path(__file__).resolve()}:load" in written
    assert "b: <python>:len" in written


@given(text=st.text(max_size=60))
def test_any_text_gives_a_config_or_a_told_error(tmp_path_factory, text: str):
    for name in ("fuzz.yaml", "fuzz.toml"):
        path = tmp_path_factory.getbasetemp() / name
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(ReinforgeError):
            load_config([path])
