"""Graders as JSON text: read with the line of everything that is wrong."""

from __future__ import annotations

import json

from reinforge.errors import RewardError
from reinforge.grading.spec import GraderNode, read


def read_json(text: str, file_name: str) -> GraderNode:
    """The grader a text holds; RewardError naming the line."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise RewardError(f"{file_name}:{error.lineno}: this is not JSON: {error.msg}.") from None
    except RecursionError:
        raise RewardError(f"{file_name}: it is nested too deeply.") from None
    return read(value, file_name)
