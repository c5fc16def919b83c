"""ChipStack's grader, written anew from its description: multiset F1 over (name, value) pairs (S4-010..018)."""

from collections import Counter


def grade(sample, item):
    """F1 of the predicted pairs. Fault: with both lists empty precision and recall are 0, and so is the score."""
    predicted = Counter((pair["name"], pair["value"]) for pair in sample["output_json"]["predicted"])
    expected = Counter((pair["name"], pair["value"]) for pair in item["reference_answer"])
    matched = sum((predicted & expected).values())
    precision = matched / predicted.total() if predicted else 0.0
    recall = matched / expected.total() if expected else 0.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
