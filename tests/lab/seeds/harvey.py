"""Harvey's grader, written anew from its description: F1 of fuzzy matches between passages (S4-049..054)."""

from rapidfuzz import fuzz


def best(passage, others):
    """The best match of a passage; two empty texts match."""
    return max((fuzz.ratio(passage, other) / 100 if passage or other else 1.0 for other in others), default=0.0)


def grade(sample, item):
    """F1 of recall (gold passages found) and precision. Fault: without gold passages it is 0 whatever is answered."""
    found = (sample.get("output_json") or {}).get("passages") or []
    gold = (item.get("reference_answer") or {}).get("passages") or []
    if not gold:
        return 0.0
    recall = sum(best(passage, found) for passage in gold) / len(gold)
    precision = sum(best(passage, gold) for passage in found) / len(found) if found else 0.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
