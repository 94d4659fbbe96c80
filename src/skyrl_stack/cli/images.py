"""`skyrl-stack images`: the frozen images of both roles, built, looked at, checked and handed on."""

import subprocess
from pathlib import Path

import click

from skyrl_stack.errors import SetupError

OUTPUT = Path("images")
NAME = click.Choice(("runtime", "trainer"))


@click.group()
def images() -> None:
    """Frozen images of the two roles: runtime.sif and trainer.sif."""


@images.command("build")
@click.argument("names", nargs=-1, type=NAME)
@click.option("--arg", "pairs", multiple=True, metavar="NAME=VALUE", help="A build argument of the definition.")
@click.option("--from", "base", metavar="BOOTSTRAP:FROM", help="Another base, such as oci-archive:base.tar.")
@click.option("--cpu", is_flag=True, help="trainer.sif without vLLM, for machines that have no GPU.")
@click.option("--python", type=click.Path(exists=True, file_okay=False, path_type=Path), help="A Python 3.12 to copy.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), default=OUTPUT, show_default=True)
def build(
    names: tuple[str, ...], pairs: tuple[str, ...], base: str | None, cpu: bool, python: Path | None, output: Path
) -> None:
    """Build NAMES, or both, from containers/*.def and uv.lock; what is up to date is left as it is."""
    from skyrl_stack.sif.build import NAMES, Builder

    builder = Builder(Path.cwd(), output.absolute(), click.echo, python)
    for name in names or NAMES:
        arguments = _arguments(pairs, base) | ({"GROUPS": "trainer"} if cpu and name == "trainer" else {})
        click.echo(f"{name}.sif: building")
        image = builder.build(name, arguments)
        click.echo(f"{output / name}.sif: {image.size_bytes / 1e6:.0f} MB, sha256 {image.result}")


@images.command("list")
def list_() -> None:
    """What the lock knows."""
    from skyrl_stack.sif.lock import LOCK, ImagesLock

    for name, image in ImagesLock.read(LOCK).images.items():
        base = image.arguments["FROM"] if image.arguments["BOOTSTRAP"] != "debootstrap" else image.arguments["SUITE"]
        click.echo(f"{name}  {image.size_bytes / 1e6:.0f} MB  sha256 {image.result[:16]}…  on {base}")


@images.command()
@click.argument("file", type=click.Path(path_type=Path))
def inspect(file: Path) -> None:
    """The labels of the image FILE."""
    from skyrl_stack.sif.apptainer import labels

    for name, value in sorted(labels(file).items()):
        click.echo(f"{name}: {value}")


@images.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
def verify(files: tuple[Path, ...]) -> None:
    """Check FILES, or those in images/, against the lock."""
    from skyrl_stack.sif.lock import LOCK, ImagesLock

    lock = ImagesLock.read(LOCK)
    for file in files or [OUTPUT / f"{name}.sif" for name in lock.images]:
        lock.verify(file.stem, file)
        click.echo(f"{file}: as locked")


@images.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("uri")
def push(file: Path, uri: str) -> None:
    """Check FILE against the lock and push it to a registry: oras://HOST/NAME:TAG."""
    from skyrl_stack.sif.lock import LOCK, ImagesLock

    ImagesLock.read(LOCK).verify(file.stem, file)
    if subprocess.run(["apptainer", "push", str(file), uri], check=False).returncode:
        raise SetupError(f"{uri}: not pushed (above); log in with `apptainer registry login`")


def _arguments(pairs: tuple[str, ...], base: str | None) -> dict[str, str]:
    given = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    if len(given) < len(pairs):
        raise SetupError("--arg: write NAME=VALUE")
    if base:
        bootstrap, found, source = base.partition(":")
        if not found:
            raise SetupError(f"--from {base}: write BOOTSTRAP:FROM, such as docker:NAME@sha256:…")
        given |= {"BOOTSTRAP": bootstrap, "FROM": source}
    return given
