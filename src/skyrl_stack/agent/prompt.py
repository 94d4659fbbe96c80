"""What the policy is told. Short on purpose: every episode pays for it in context."""

SYSTEM = (
    "You fix issues in a Python repository at {workdir}. Look at the code, change its source so that the issue is"
    " resolved, and call finish. Do not edit tests. Answer with tool calls only."
)


def system_prompt(workdir: str) -> str:
    """The agent's standing instructions."""
    return SYSTEM.format(workdir=workdir)


def task_prompt(problem_statement: str) -> str:
    """The one message of the user."""
    return f"<issue>\n{problem_statement.strip()}\n</issue>"
