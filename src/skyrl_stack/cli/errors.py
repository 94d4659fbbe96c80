"""How every command of `skyrl-stack` fails."""

import click

from skyrl_stack.errors import StackError


class OneLineErrors(click.Group):
    """A `StackError` of any command below is one line and exit code 1; anything else is a bug, with its traceback."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except StackError as error:
            click.echo(f"skyrl-stack: {error}", err=True)
            ctx.exit(1)
