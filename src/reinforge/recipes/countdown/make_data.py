"""Write the recipe's data sets: ``python -m reinforge.recipes.countdown.make_data --out DIR``."""

import argparse
import itertools
import json
import random
from pathlib import Path

from reinforge.recipes.countdown.task import Problem, Split, shuffled, split

DATA = Path(__file__).parent / "data"
NAMES: tuple[Split, ...] = ("train", "choice", "heldout")


def problems(name: Split) -> list[Problem]:
    """The problems of one data set as filed: for training in every order of their numbers, else in a random one."""
    rng = random.Random(f"countdown {name}")
    if name != "train":
        return [shuffled(problem, rng) for problem in split(name)]
    orders = [(one, order) for one in split(name) for order in sorted(set(itertools.permutations(one.numbers)))]
    rng.shuffle(orders)
    return [Problem((first, second, third), one.target) for one, (first, second, third) in orders]


def lines(name: Split) -> str:
    """The JSONL text of one data set, with the columns ``prompt``, ``numbers`` and ``target``."""
    rows = (
        {"prompt": one.prompt, "numbers": " ".join(map(str, one.numbers)), "target": str(one.target)}
        for one in problems(name)
    )
    return "".join(json.dumps(row) + "\n" for row in rows)


def main() -> None:
    """Write one file per data set."""
    parser = argparse.ArgumentParser(description="Write the data sets of the Countdown recipe.")
    parser.add_argument("--out", type=Path, default=DATA, help="folder to write to (default: the recipe's own)")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        (out / f"{name}.jsonl").write_text(lines(name), encoding="utf-8")


if __name__ == "__main__":
    main()
