"""Which model a grader means: its folder's full path, and a fingerprint of what lies there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reinforge.errors import RewardError
from reinforge.model_files import fingerprint_model

MODEL_GRADERS = ("similarity", "fluency")
"""Types with an option `model` that is a local folder."""


def with_models(node: Any, base_dir: Path) -> Any:
    """A grader's JSON in which every model folder is a full path with a fingerprint: what makes a version says which
    model judged. Relative paths start at `base_dir`. RewardError when there is no model."""
    if isinstance(node, list):
        return [with_models(entry, base_dir) for entry in node]
    if not isinstance(node, dict):
        return node
    settled = {name: with_models(value, base_dir) for name, value in node.items()}
    if node.get("type") in MODEL_GRADERS and isinstance(node.get("model"), str):
        folder = (base_dir / node["model"]).resolve()
        if not (folder / "config.json").is_file():
            raise RewardError(
                f"{node['type']}: there is no model in {folder} (no config.json).",
                hint="Download one into a folder first: hf download ORG/NAME --local-dir FOLDER",
            )
        settled |= {"model": str(folder), "fingerprint": fingerprint_model(folder)}
    return settled
