"""Write the recipe's data sets: ``python -m reinforge.recipes.countdown.make_data --out DIR``."""

import argparse
import json
import random
from pathlib import Path

from reinforge.recipes.countdown.task import Problem, Split, shuffled, split

DATA = Path(__file__).parent / "data"
# Every problem of the training split is shown in several orders of its numbers, the others in one.
ORDERS: dict[Split, int] = {"train": 6, "choice": 1, "heldout": 1}


def problems(name: Split) -> list[Problem]:
    """The problems of one data set in file order: no two show the same numbers in the same order with the same target."""
    rng = random.Random(f"countdown {name}")
    every = [shuffled(problem, rng) for problem in split(name) for _ in range(4 * ORDERS[name])]
    kept: dict[Problem, None] = {}
    for problem in every:
        same = sum(sorted(other.numbers) == sorted(problem.numbers) and other.target == problem.target for other in kept)
        if same < ORDERS[name]:
            kept[problem] = None
    ordered = list(kept)
    rng.shuffle(ordered)
    return ordered


def lines(name: Split) -> str:
    """The JSONL text of one data set, with the columns ``prompt``, ``numbers`` and ``target``."""
    rows = (
        {"prompt": one.prompt, "numbers": " ".join(map(str, one.numbers)), "target": str(one.target)}
        for one in problems(name)
    )
    return "".join(json.dumps(row) + "\n" for row in rows)


def main() -> None:
    """Write one file per data set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DATA)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name in ORDERS:
        (out / f"{name}.jsonl").write_text(lines(name), encoding="utf-8")


if __name__ == "__main__":
    main()
