"""Where Reinforge keeps what belongs to this machine and user, not to a run."""

from __future__ import annotations

import os
from pathlib import Path


def home_folder() -> Path:
    """The folder REINFORGE_HOME, else ~/.reinforge. It need not exist."""
    home = os.environ.get("REINFORGE_HOME")
    return Path(home) if home else Path.home() / ".reinforge"
