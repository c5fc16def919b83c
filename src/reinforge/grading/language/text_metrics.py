"""How alike two texts are: the metrics of `text_similarity`, as their usual libraries compute them, from 0 to 1.

| metric | library | how |
|---|---|---|
| fuzzy_match | rapidfuzz | `fuzz.ratio` / 100: 2 * matching characters / all characters |
| bleu | sacrebleu | `sentence_bleu` / 100: tokenizer 13a, exponential smoothing, effective order |
| gleu | nltk | `sentence_gleu` on words between spaces, 1 to 4 of them |
| meteor | nltk | `meteor_score` on words between spaces, exact and stem matches; no WordNet, so synonyms do not match |
| rouge_1 ... rouge_5, rouge_l | rouge-score | F-measure, without stemming |

The libraries are imported by the function that needs them.
"""

from __future__ import annotations

from collections.abc import Callable

Metric = Callable[[str, str], float]
"""(input, reference) -> 0..1"""


def fuzzy_match() -> Metric:
    """
    >>> fuzzy_match()("kitten", "sitting")
    0.6153846153846154
    """
    from rapidfuzz import fuzz

    return lambda given, wanted: float(fuzz.ratio(given, wanted)) / 100


def bleu() -> Metric:
    """
    >>> round(bleu()("the cat sat on a mat", "the cat sat on the mat"), 6)
    0.537285
    """
    from sacrebleu import sentence_bleu

    # An equal text comes out a rounding error above 1.
    return lambda given, wanted: min(float(sentence_bleu(given, [wanted]).score) / 100, 1.0)


def gleu() -> Metric:
    """
    >>> gleu()("the cat sat", "the cat sat on the mat")
    0.3333333333333333
    """
    from nltk.translate.gleu_score import sentence_gleu

    return lambda given, wanted: float(sentence_gleu([wanted.split()], given.split()))


class NoWordNet:
    """WordNet's data are a download of their own; without them nothing has synonyms."""

    def synsets(self, word: str) -> list[object]:
        return []


def meteor() -> Metric:
    """
    >>> round(meteor()("the cats sat", "the cat sat"), 6)
    0.981481
    """
    from nltk.translate.meteor_score import single_meteor_score

    nothing = NoWordNet()
    return lambda given, wanted: float(single_meteor_score(wanted.split(), given.split(), wordnet=nothing))


def rouge(kind: str) -> Callable[[], Metric]:
    """
    >>> rouge("rouge2")()("a b c", "a b d")
    0.5
    """

    def make() -> Metric:
        from rouge_score.rouge_scorer import RougeScorer

        judge = RougeScorer([kind])
        return lambda given, wanted: float(judge.score(wanted, given)[kind].fmeasure)

    return make


METRICS: dict[str, Callable[[], Metric]] = {
    "fuzzy_match": fuzzy_match,
    "bleu": bleu,
    "gleu": gleu,
    "meteor": meteor,
    **{f"rouge_{n}": rouge(f"rouge{n}") for n in range(1, 6)},
    "rouge_l": rouge("rougeL"),
}
"""Name -> what imports the library and makes the metric."""
