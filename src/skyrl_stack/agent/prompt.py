"""What the policy is told. Short on purpose: every episode pays for it in context."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, TemplateError

from skyrl_stack.errors import ProfileError

SYSTEM = (
    "You fix issues in a Python repository at {{ workdir }}. Look at the code, change its source so that the issue is"
    " resolved, and call finish. Do not edit tests. Answer with tool calls only."
)
TASK = "<issue>\n{{ problem_statement }}\n</issue>"
_TEMPLATES = Environment(undefined=StrictUndefined, autoescape=False)


def system_prompt(workdir: str, template: Path | None = None) -> str:
    """The agent's standing instructions.

    Raises:
        ProfileError: the template is missing or cannot be rendered.
    """
    return _render("agent.system_prompt", template, SYSTEM, workdir=workdir)


def task_prompt(problem_statement: str, *, workdir: str = "", template: Path | None = None) -> str:
    """The one message of the user.

    Raises:
        ProfileError: the template is missing or cannot be rendered.
    """
    text = problem_statement.strip()
    return _render("agent.task_prompt", template, TASK, problem_statement=text, workdir=workdir)


def _render(key: str, template: Path | None, default: str, **values: Any) -> str:
    try:
        return _TEMPLATES.from_string(template.read_text() if template else default).render(values)
    except (OSError, UnicodeDecodeError, TemplateError) as error:
        raise ProfileError(f"{key} = {template}: {error}") from error
