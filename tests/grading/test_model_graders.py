"""Models as graders of a run: in a worker of their own, with their folder and nothing else."""

from __future__ import annotations

import os
import shutil
from contextlib import closing

import pytest
from tiny_bert import make_bert
from transformers import BertModel

from reinforge.config import RewardFunctionsConfig, RewardFunctionsRuntimeConfig
from reinforge.errors import RewardError
from reinforge.grading.builtin import similarity
from reinforge.grading.completions import grade_completions
from reinforge.grading.grader import RewardFunctionGrader
from reinforge.grading.reward_function import RewardFunction, load_text, locate
from reinforge.sandbox import tiers

SIMILAR = {"type": "similarity", "reference": "{{item.answer}}", "model": "models/bert"}


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    (folder / "models").mkdir()
    make_bert(folder / "models" / "bert", BertModel)
    return folder


def scores_of(functions, base_dir, *texts, answer="the patient has fever"):
    config = RewardFunctionsConfig(functions=functions, runtime=RewardFunctionsRuntimeConfig(timeout_s=300))
    rows = [{"prompt": "p", "completion": text, "answer": answer} for text in texts]
    with closing(RewardFunctionGrader.from_config(config, base_dir)) as grader:
        return [grade.scores for grade in grade_completions(grader, rows)]


@pytest.mark.slow
@pytest.mark.parametrize("tier", ["bubblewrap", "landlock"])
def test_models_judge_in_every_isolating_tier(base_dir, tiny_qwen2, tier, monkeypatch):
    if isinstance(tiers.working(tier), str):
        pytest.skip(f"{tier}: {tiers.working(tier)}")
    monkeypatch.setenv(tiers.VARIABLE, tier)
    fluent = {"type": "fluency", "model": str(tiny_qwen2), "bad": 1e9}
    total = {"type": "combine", "graders": {"close": SIMILAR, "fluent": fluent}, "weights": {"fluent": 0.5}}
    texts = ("the patient has fever", "no pain", "")
    scores = scores_of({"close": SIMILAR, "fluent": fluent, "total": total}, base_dir, *texts)
    assert [[score.state for score in row] for row in scores] == [["ok"] * 3] * 3
    folder = str(base_dir / "models" / "bert")
    for text, (close, fluency, both) in zip(texts, scores, strict=True):
        expected = similarity(input=text, reference=texts[0], model=folder)
        assert close.value == pytest.approx(expected.score, abs=1e-6)
        assert both.value == pytest.approx(close.value + 0.5 * fluency.value, abs=1e-6)
    assert scores[0][0].value == pytest.approx(1.0, abs=1e-6)
    assert abs(scores[1][0].value) < 0.999
    assert scores[2][0].message == "the completion is empty"


def test_the_version_says_which_model_judged(base_dir, tmp_path):
    folder = shutil.copytree(base_dir / "models" / "bert", tmp_path / "bert")
    config = RewardFunctionsConfig(functions={"close": {**SIMILAR, "model": "bert"}})
    with closing(RewardFunctionGrader.from_config(config, tmp_path)) as grader:
        (function,) = grader.functions
    assert f'"model": "{folder}"' in function.source
    again = RewardFunction.from_record(function.to_record())
    with (folder / "vocab.txt").open("a") as vocabulary:
        vocabulary.write("\nfever")
    with pytest.raises(RewardError, match="is not the one this version was made with"):
        RewardFunctionGrader([again])


def test_a_folder_without_a_model_is_told_before_anything_starts(base_dir):
    with pytest.raises(RewardError, match=r"there is no model in .*elsewhere \(no config.json\)"):
        scores_of({"close": {**SIMILAR, "model": "elsewhere"}}, base_dir, "x")


@pytest.mark.slow
def test_a_model_kept_as_links_is_read(base_dir, tmp_path):
    """As download caches keep them: names in one folder, files in another."""
    blobs, links = tmp_path / "blobs", tmp_path / "snapshot"
    shutil.copytree(base_dir / "models" / "bert", blobs)
    links.mkdir()
    for path in blobs.iterdir():
        os.symlink(f"../blobs/{path.name}", links / path.name)
    ((score,),) = scores_of({"close": {**SIMILAR, "model": str(links)}}, base_dir, "the patient has fever")
    assert score.state == "ok", score.message
    assert score.value == pytest.approx(1.0, abs=1e-6)


def test_a_row_without_a_reference_is_an_error_of_the_row(base_dir):
    ((score,),) = scores_of({"close": SIMILAR}, base_dir, "the patient", answer="")
    assert (score.state, score.kind) == ("error", "other_error")
    assert "reference must be a text" in score.message


def test_cosine_is_similarity_with_the_model_named(base_dir):
    cosine = {"type": "text_similarity", "evaluation_metric": "cosine", "input": "{{sample.output_text}}"}
    cosine |= {"reference": "{{item.answer}}", "pass_threshold": 0.5}
    with pytest.raises(RewardError, match="add model, the folder of an embedding model"):
        scores_of({"close": cosine}, base_dir, "x")
    text = load_text("close", locate("close", {**cosine, "model": "models/bert"}, base_dir)).source
    assert '"kind": "embedding"' in text
    assert '"type": "similarity"' in text
    assert '"pass_threshold": 0.5' in text
