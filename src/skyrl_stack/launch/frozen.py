"""A role and what it runs in: the Python environment of the launch, or its frozen image."""

import os
import sys
import tempfile
from pathlib import Path

from skyrl_stack.errors import SetupError
from skyrl_stack.launch import processes
from skyrl_stack.profile import Profile
from skyrl_stack.run_directory import Role, RunDirectory
from skyrl_stack.sandbox.storage import CACHE_VARIABLE, IMAGES_VARIABLE, cache_dir, site_images
from skyrl_stack.sif import apptainer
from skyrl_stack.sif.lock import LOCK, ImagesLock

_NVIDIA = Path("/dev/nvidiactl")


def require_images(profile: Profile) -> None:
    """See that the images of the profile are there, and are those of the lock.

    Raises:
        SetupError: one is not; names it and the way out.
    """
    for role in ("runtime", "trainer"):
        image = profile.images.of(role)
        if image is None:
            continue
        if not image.is_file():
            raise SetupError(f"images.{role} = {image}: no such file; run `make images NAME={role}`")
        if not profile.images.unlocked:
            ImagesLock.read(LOCK).verify(role, image)


def interpreter(directory: RunDirectory, role: Role) -> list[str]:
    """The argv of the Python that `role` runs in. To be asked on the node where the role will be.

    Raises:
        SetupError: the image cannot be used on this node.
    """
    profile = directory.profile()
    image = profile.images.of(role)
    if image is None:
        return [sys.executable]
    apptainer.require()
    processes.adopt_orphans()  # what shows the image outlives a `kill -9` of Apptainer, and carries no mark of ours
    command = ["apptainer", "-q", "exec"]
    for variable, place in ((CACHE_VARIABLE, cache_dir()), (IMAGES_VARIABLE, site_images())):
        command += ["--env", f"{variable}={place}"]
    if role == "trainer" and profile.trainer.device == "cuda":
        if not _NVIDIA.exists():  # `--nv` without a GPU succeeds, and says nothing
            raise SetupError(f"trainer.device = 'cuda', but {os.uname().nodename} shows no GPU ({_NVIDIA} is missing)")
        command.append("--nv")
    for path in _shown(directory, profile):
        command += ["--bind", str(path)]
    return [*command, str(image.absolute()), "python"]


def _shown(directory: RunDirectory, profile: Profile) -> list[Path]:
    """What the role needs of the machine beside its home, which Apptainer shows by itself."""
    model = Path(profile.model.path).absolute()
    given = [path for path in (site_images(), model) if path.is_dir()]
    paths = [directory.path, Path.cwd(), Path(tempfile.gettempdir()), cache_dir(), *given]
    return [path for number, path in enumerate(paths) if not any(map(path.is_relative_to, paths[:number]))]
