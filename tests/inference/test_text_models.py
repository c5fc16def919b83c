"""Models as graders: the figures are those of the models, computed here the long way."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from tiny_bert import WORDS, make_bert
from transformers import AutoTokenizer, BertForSequenceClassification, BertModel, Qwen2ForCausalLM

from reinforge.inference.text_models import fluency, similarity

TEXT, OTHER = "the patient has fever", "a cold and no pain in the chest"


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    return make_bert(tmp_path_factory.mktemp("models") / "embedder", BertModel)


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory):
    return make_bert(tmp_path_factory.mktemp("models") / "cross", BertForSequenceClassification, num_labels=1)


def hidden(folder, text):
    tokenizer, model = AutoTokenizer.from_pretrained(folder), BertModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].double()


def cosine(one, other):
    return float(one @ other / (one.norm() * other.norm()))


@pytest.mark.parametrize(
    ("settings", "pool"),
    [
        (None, lambda h: h.mean(0)),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, lambda h: h.mean(0)),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, lambda h: h[0]),
        ({"pooling_mode": "max"}, lambda h: h.max(0).values),
    ],
)
def test_similarity_is_the_cosine_of_pooled_embeddings(embedder, tmp_path, settings, pool):
    folder = shutil.copytree(embedder, tmp_path / "model")
    if settings is not None:
        kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
        modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in kinds.items()]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings | {"word_embedding_dimension": 32}))
    expected = cosine(pool(hidden(embedder, TEXT)), pool(hidden(embedder, OTHER)))
    assert similarity(input=TEXT, reference=OTHER, model=str(folder)).score == pytest.approx(expected, abs=1e-6)
    assert similarity(input=TEXT, reference=TEXT, model=str(folder)).score == pytest.approx(1.0, abs=1e-6)
    assert abs(expected) < 0.999


def test_a_cross_encoder_reads_both_texts_at_once(cross_encoder):
    tokenizer = AutoTokenizer.from_pretrained(cross_encoder)
    model = BertForSequenceClassification.from_pretrained(cross_encoder).eval()
    with torch.no_grad():
        logit = float(model(**tokenizer(TEXT, OTHER, return_tensors="pt")).logits)
    result = similarity(input=TEXT, reference=OTHER, model=str(cross_encoder))
    assert result.score == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-6)
    swapped = similarity(input=OTHER, reference=TEXT, model=str(cross_encoder)).score
    assert abs(swapped - result.score) > 1e-4


def test_texts_beyond_the_window_are_cut_and_said_to_be(embedder):
    long = " ".join(WORDS * 5)
    assert similarity(input=long, reference=TEXT, model=str(embedder)).metrics == {"cut": 1.0}
    assert similarity(input=TEXT, reference=TEXT, model=str(embedder)).metrics == {"cut": 0.0}


@pytest.mark.parametrize("nothing", ["", "  \n", None, 3, ["x"]])
def test_an_empty_completion_is_similar_to_nothing(embedder, nothing):
    assert similarity(input=nothing, reference=TEXT, model=str(embedder)).score == 0
    with pytest.raises(ValueError, match="reference must be a text"):
        similarity(input=TEXT, reference=nothing, model=str(embedder))


def test_models_that_are_none_of_the_kinds_are_refused(tmp_path, embedder):
    with pytest.raises(ValueError, match="there is no model in"):
        similarity(input=TEXT, reference=OTHER, model=str(tmp_path))
    three = make_bert(tmp_path / "nli", BertForSequenceClassification, num_labels=3)
    with pytest.raises(ValueError, match="has 3 outputs"):
        similarity(input=TEXT, reference=OTHER, model=str(three))
    dense = shutil.copytree(embedder, tmp_path / "dense")
    (dense / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]))
    with pytest.raises(ValueError, match="has a module Dense"):
        similarity(input=TEXT, reference=OTHER, model=str(dense))


def test_fluency_is_the_perplexity_of_a_language_model(tiny_qwen2):
    text, context = "No pain.", "How is she? "
    tokenizer = AutoTokenizer.from_pretrained(tiny_qwen2)
    model = Qwen2ForCausalLM.from_pretrained(tiny_qwen2).double().eval()
    for before in ("", context):
        ids = [tokenizer.bos_token_id, *tokenizer(before + text, add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        own = range(len(ids) - len(text), len(ids))  # the tokenizer has one token per byte
        nll = -sum(float(logprobs[place - 1, ids[place]]) for place in own) / len(text)
        result = fluency(input=text, model=str(tiny_qwen2), context=before, good=2, bad=1e9)
        assert result.metrics["perplexity"] == pytest.approx(math.exp(nll), rel=1e-4)
        expected = (math.log(1e9) - nll) / (math.log(1e9) - math.log(2))
        assert result.score == pytest.approx(expected, abs=1e-5)
        assert 0.05 < result.score < 0.95


def test_fluency_reaches_its_ends_and_judges_long_texts_by_their_end(tiny_qwen2):
    folder = str(tiny_qwen2)
    assert fluency(input="No pain.", model=folder, good=1.0, bad=1.5).score == 0
    assert fluency(input="No pain.", model=folder, good=1e8, bad=1e9).score == 1
    end = "x" * 511 + "y"
    long = fluency(input="a" * 600 + end, model=folder, bad=1e9).metrics
    assert long == fluency(input="b" * 900 + end, model=folder, bad=1e9).metrics
    assert fluency(input=" ", model=folder).score == 0
    with pytest.raises(ValueError, match="below bad"):
        fluency(input="x", model=folder, good=5, bad=5)
