"""From the facts of the tests to the scalar that the policy learns from."""

from skyrl_stack.grading.grade import Grade


def reward(grade: Grade) -> float:
    """1 if the patch resolves the issue and breaks nothing, else 0."""
    return 1.0 if grade.resolved else 0.0
