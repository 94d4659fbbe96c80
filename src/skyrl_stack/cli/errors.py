"""How every command of `skyrl-stack` fails."""

import os

import click

from skyrl_stack.errors import StackError
from skyrl_stack.room import NO_ROOM


class OneLineErrors(click.Group):
    """A `StackError`, or a file that cannot be used, is one line and exit code 1; the rest are bugs, with traceback."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except StackError as error:
            click.echo(f"skyrl-stack: {error}", err=True)
            ctx.exit(1)
        except OSError as error:
            if error.filename is None and error.errno not in NO_ROOM:
                raise
            place = f"{os.fsdecode(error.filename)}: " if error.filename else ""
            click.echo(f"skyrl-stack: {place}{error.strerror}", err=True)
            ctx.exit(1)
