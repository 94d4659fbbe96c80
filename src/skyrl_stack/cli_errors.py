"""How every command of `skyrl-stack` fails."""

import sys
from collections.abc import Callable
from functools import wraps

import click

from skyrl_stack.errors import StackError


def one_line_errors[**P, R](command: Callable[P, R]) -> Callable[P, R]:
    """A `StackError` is one line and exit code 1; anything else is a bug and shows its traceback."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except StackError as error:
            click.echo(f"skyrl-stack: {error}", err=True)
            sys.exit(1)

    return wrapped
