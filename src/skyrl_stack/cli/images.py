"""`skyrl-stack images`: the frozen images of both roles, and the images of tasks in the site's store."""

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import click

from skyrl_stack.errors import SetupError

if TYPE_CHECKING:
    from skyrl_stack.oci.store import SiteStore

OUTPUT = Path("images")
NAME = click.Choice(("runtime", "trainer"))
KEY = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def images() -> None:
    """Images of the roles (build, inspect, verify, push) and of tasks (pull, prefetch, save, load, gc); list."""


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
    from skyrl_stack.launch.roles import signals_raise
    from skyrl_stack.sif.build import NAMES, Builder

    builder = Builder(Path.cwd(), output.absolute(), click.echo, python)
    with signals_raise():
        for name in names or NAMES:
            arguments = _arguments(pairs, base) | ({"GROUPS": "trainer"} if cpu and name == "trainer" else {})
            click.echo(f"{name}.sif: building")
            image = builder.build(name, arguments)
            click.echo(f"{output / name}.sif: {image.size_bytes / 1e6:.0f} MB, sha256 {image.result}")


@images.command("list")
def list_() -> None:
    """What the lock knows of the roles' images, and the images of tasks in the site's store."""
    from skyrl_stack.oci.listing import store_lines
    from skyrl_stack.sif.lock import LOCK, ImagesLock

    for name, image in ImagesLock.read(LOCK).images.items():
        base = image.arguments["FROM"] if image.arguments["BOOTSTRAP"] != "debootstrap" else image.arguments["SUITE"]
        click.echo(f"{name}  {image.size_bytes / 1e6:.0f} MB  sha256 {image.result[:16]}…  on {base}")
    for line in store_lines(_site_store()):
        click.echo(line)


@images.command()
@click.argument("references", nargs=-1, required=True, metavar="IMAGE...")
def pull(references: tuple[str, ...]) -> None:
    """Fetch task images from their registries into the site's store, each layer once; what broke off goes on.

    The store is $SKYRL_IMAGES, on the cluster's file system, or else in the cache. Neither Podman nor a container is
    needed, so a login node will do.
    """
    _pull(references)


@images.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
def prefetch(files: tuple[Path, ...]) -> None:
    """Pull the images of all tasks of the task FILEs."""
    from skyrl_stack.oci.listing import images_of
    from skyrl_stack.oci.reference import MADE_HERE

    _pull(tuple(image for image in images_of(files) if not image.startswith(MADE_HERE)))


@images.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("references", nargs=-1, metavar="[IMAGE]...")
@click.option("--tasks", multiple=True, type=click.Path(path_type=Path), help="A task file whose images to save.")
def save(file: Path, references: tuple[str, ...], tasks: tuple[Path, ...]) -> None:
    """Write IMAGEs of the site's store into the archive FILE, for a site that no registry reaches."""
    from skyrl_stack.oci.archive import save
    from skyrl_stack.oci.listing import images_of, stored

    store = _site_store()
    found = stored(store, (*references, *images_of(tasks)))
    save(found, store, file)
    click.echo(f"{file}: {len(found)} images, {file.stat().st_size / 1e6:.0f} MB")


@images.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@click.option("--name", metavar="IMAGE", help="What its image is called, where the archive does not say.")
def load(files: tuple[Path, ...], name: str | None) -> None:
    """Add the images of OCI archives, as `save` or `podman save --format oci-archive` writes them, to the store."""
    from skyrl_stack.oci.archive import load

    store = _site_store()
    for file in files:
        for image in load(file, store, name=name):
            click.echo(f"{image.reference}: {image.size / 1e6:.0f} MB, {image.digest}")


@images.command()
@click.option("--keep", multiple=True, type=click.Path(path_type=Path), help="A task file whose images stay.")
@click.option("--days", default=30.0, show_default=True, type=click.FloatRange(0), help="Unused for so long.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
def gc(keep: tuple[Path, ...], days: float, dry_run: bool) -> None:
    """Remove task images that no node has used for a while from the site's store, and layers without an image."""
    from skyrl_stack.oci.listing import images_of, unused

    store = _site_store()
    for image in unused(store, days=days, keep=images_of(keep)):
        click.echo(f"{'would remove' if dry_run else 'removed'} {image.reference}")
        if not dry_run:
            store.remove(image.reference)
    if not dry_run:
        count, size = store.remove_unused_blobs()
        click.echo(f"{store.path}: {count} files without an image removed, {size / 1e6:.0f} MB")


def _site_store() -> "SiteStore":
    from skyrl_stack.oci.store import SiteStore
    from skyrl_stack.sandbox.storage import site_images

    return SiteStore(site_images())


def _pull(references: tuple[str, ...]) -> None:
    from skyrl_stack.oci.pull import pull
    from skyrl_stack.oci.reference import Reference

    store = _site_store()
    for reference in map(Reference.parse, references):
        image = pull(reference, store, click.echo)
        click.echo(f"{reference}: {image.size / 1e6:.0f} MB, {image.digest}")


@images.command()
@click.argument("file", type=click.Path(path_type=Path))
def inspect(file: Path) -> None:
    """The labels of the image FILE."""
    from skyrl_stack.sif.apptainer import labels

    for name, value in sorted(labels(file).items()):
        click.echo(f"{name}: {value}")


@images.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--key", type=KEY, help="The signer's public PEM key.")
@click.option("--signed", is_flag=True, help="Signed by a key of PGP's key ring.")
def verify(files: tuple[Path, ...], key: Path | None, signed: bool) -> None:
    """Check FILES, or those in images/, against the lock, and their signatures if asked to."""
    from skyrl_stack.sif.lock import LOCK, ImagesLock
    from skyrl_stack.sif.signature import require_signature

    lock = ImagesLock.read(LOCK)
    for file in files or [OUTPUT / f"{name}.sif" for name in lock.images]:
        lock.verify(file.stem, file)
        if key or signed:
            require_signature(file, key)
        click.echo(f"{file}: as locked{', and signed' if key or signed else ''}")


@images.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--key", type=KEY, help="A private PEM key.")
def sign(file: Path, key: Path | None) -> None:
    """Sign the image FILE, by a PEM key or else by one of PGP's key ring."""
    from skyrl_stack.sif.lock import LOCK
    from skyrl_stack.sif.signature import sign

    sign(file, key, LOCK)
    click.echo(f"{file}: signed")


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
