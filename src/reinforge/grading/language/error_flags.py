"""What can go wrong while a grader judges, in the words of OpenAI's grader API: the flags of a run reply."""

from __future__ import annotations

from collections.abc import Mapping

ERROR_FLAGS = (
    "formula_parse_error",
    "sample_parse_error",
    "truncated_observation_error",
    "unresponsive_reward_error",
    "invalid_variable_error",
    "other_error",
    "python_grader_server_error",
    "python_grader_runtime_error",
    "model_grader_server_error",
    "model_grader_refusal_error",
    "model_grader_parse_error",
)
"""The kinds of fault, each true or false in a reply."""
ERROR_DETAILS = {
    "python_grader_server_error": "python_grader_server_error_type",
    "python_grader_runtime_error": "python_grader_runtime_error_details",
    "model_grader_server_error": "model_grader_server_error_details",
}
"""Texts that go with three of them; null when all is well."""


class GraderFault(Exception):
    """The grader cannot judge: its template names a column that is not there, its formula divides by zero. The score
    is an error of this kind.

    >>> GraderFault("invalid_variable_error", "the row has no answer").kind
    'invalid_variable_error'
    """

    def __init__(self, kind: str, message: str, metrics: Mapping[str, float] | None = None) -> None:
        """`metrics`: what is known all the same, for instance the scores of parts that did not fail."""
        super().__init__(message)
        self.kind = kind
        self.metrics = dict(metrics or {})


class CompletionFault(GraderFault):
    """The completion lacks what the grader reads of it, for instance it is no JSON: an honest 0 of the completion, told
    as the score's reason and as a metric of the kind's name."""
