"""Protected files: what decides how the tests run, which a patch can therefore not change."""

from skyrl_stack.tasks.task import REPOSITORY, Task

CONFIGURATION = (
    "conftest.py",
    "pytest.ini",
    ".pytest.ini",
    "pytest.toml",
    ".pytest.toml",
    "tox.ini",
    "setup.cfg",
    "pyproject.toml",
)
"Files that pytest takes plugins and options from, in any directory."

SHADOWS = ("sitecustomize.py", "usercustomize.py", "pytest.py", "_pytest", "pluggy", "pluggy.py", "py.py", "xdist")
"Modules that Python would import from the repository's top in place of those that judge the tests."


def named_files(task: Task) -> tuple[str, ...]:
    """The files that the ids of the task's tests name. Ids of other runners than pytest name none."""
    ids = (*task.FAIL_TO_PASS, *task.PASS_TO_PASS)
    return tuple(sorted({test.partition("::")[0] for test in ids if "::" in test}))


def hidden_files(task: Task) -> tuple[str, ...]:
    """The hidden paths that are in the repository, relative to it."""
    inside = f"{REPOSITORY}/"
    return tuple(path.removeprefix(inside) for path in task.hidden if path.startswith(inside))


def protected_pathspecs(task: Task, *, exclude: bool = False) -> list[str]:
    """git pathspecs of all that is protected; with `exclude`, of all that is not."""
    magic = ",exclude" if exclude else ""
    configuration = [f":(top,glob{magic})**/{name}" for name in CONFIGURATION]
    files = (*SHADOWS, *named_files(task), *hidden_files(task))
    return [*configuration, *(f":(top,literal{magic}){file}" for file in files)]
