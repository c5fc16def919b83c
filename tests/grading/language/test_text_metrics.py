"""Text metrics equal their libraries, asked in another way, on 200 pairs."""

from __future__ import annotations

import random

import pytest

from reinforge.grading.language.text_metrics import METRICS, NoWordNet

WORDS = """
the cat cats sat sitting on a mat mats running runs run happily, happy. Über naïve 東京 3.5 x-ray don't
""".split()  # noqa: SIM905
EDGES = ["", " ", "a", "a a a a", "The cat sat on the mat.", "\n", "ß", "🙂 ok"]


def pairs():
    draw = random.Random(7)

    def text():
        return " ".join(draw.choices(WORDS, k=draw.randrange(1, 25)))

    def changed(words):
        return " ".join(word if draw.random() < 0.7 else draw.choice(WORDS) for word in words.split())

    made = [(one, other) for one in EDGES for other in EDGES]
    while len(made) < 200:
        reference = text()
        made.append((changed(reference) if draw.random() < 0.7 else text(), reference))
    return made


PAIRS = pairs()


def fuzzy_match(given, wanted):
    from rapidfuzz.distance import Indel

    return Indel.normalized_similarity(given, wanted)


def bleu(given, wanted):
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True).sentence_score(given, [wanted]).score / 100


def gleu(given, wanted):
    from nltk.translate.gleu_score import corpus_gleu

    return corpus_gleu([[wanted.split()]], [given.split()])


def meteor(given, wanted):
    from nltk.translate.meteor_score import meteor_score

    return meteor_score([wanted.split()], given.split(), wordnet=NoWordNet())


def rouge(kind):
    def score(given, wanted):
        from rouge_score import rouge_scorer, scoring

        aggregator = scoring.BootstrapAggregator(n_samples=1)
        aggregator.add_scores(
            rouge_scorer.RougeScorer([kind], use_stemmer=False).score(target=wanted, prediction=given)
        )
        return aggregator.aggregate()[kind].mid.fmeasure

    return score


THEIRS = {"fuzzy_match": fuzzy_match, "bleu": bleu, "gleu": gleu, "meteor": meteor, "rouge_l": rouge("rougeL")}
THEIRS |= {f"rouge_{n}": rouge(f"rouge{n}") for n in range(1, 6)}


@pytest.mark.parametrize("name", list(METRICS))
def test_a_metric_is_what_its_library_says(name):
    ours, theirs = METRICS[name](), THEIRS[name]
    values = [ours(given, wanted) for given, wanted in PAIRS]
    assert len(PAIRS) == 200
    assert values == pytest.approx([theirs(given, wanted) for given, wanted in PAIRS], abs=1e-9)
    assert all(0 <= value <= 1 for value in values)
    assert len(set(values)) > 20


def test_meteor_matches_stems_but_no_synonyms():
    meteor = METRICS["meteor"]()
    assert meteor("running cats", "run cat") == meteor("run cat", "run cat")
    assert meteor("automobile", "car") == 0.0
