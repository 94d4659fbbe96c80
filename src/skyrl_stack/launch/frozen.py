"""A role and what it runs in: the Python environment of the launch, or its frozen image."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from skyrl_stack.errors import SetupError
from skyrl_stack.launch import processes
from skyrl_stack.profile import Profile
from skyrl_stack.run_directory import Role, RunDirectory
from skyrl_stack.sandbox.namespaces import id_map
from skyrl_stack.sandbox.storage import CACHE_VARIABLE, IMAGES_VARIABLE, cache_dir, site_images
from skyrl_stack.sif import apptainer
from skyrl_stack.sif.certificates import certificates
from skyrl_stack.sif.definition import Definition
from skyrl_stack.sif.lock import LOCK, ImagesLock

_NVIDIA = Path("/dev/nvidiactl")
_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
"Debian's place for the certificates to trust."
_ITS_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def require_images(profile: Profile) -> None:
    """See that the images of the profile are there, are those of the lock, and hold the code of this checkout.

    Raises:
        SetupError: one is not; names it and the way out.
    """
    for role in profile.roles:
        image = profile.images.of(role)
        if image is None:
            continue
        if not image.is_file():
            raise SetupError(f"images.{role} = {image}: no such file; run `make images NAME={role}`")
        if not profile.images.unlocked:
            locked = ImagesLock.read(LOCK).verify(role, image)
            if locked.definition != Definition.of(role, Path.cwd()).digest(Path.cwd()):
                raise SetupError(
                    f"images.{role} = {image}: made of other source than lies here; run `make images NAME={role}`, "
                    "or launch with --allow-unlocked"
                )
            if role == "trainer" and profile.trainer.device == "cuda" and locked.arguments.get("GROUPS") != "gpu":
                raise SetupError(
                    f"images.trainer = {image}: made without vLLM, and trainer.device = 'cuda'; "
                    "run `make images NAME=trainer`"
                )


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
    # By its path: inside of the image, from where more nodes are started, PATH is the image's.
    command = [str(shutil.which("apptainer")), "-q", "exec"]
    for variable, place in ((CACHE_VARIABLE, cache_dir()), (IMAGES_VARIABLE, site_images())):
        command += ["--env", f"{variable}={place}"]
    if role == "runtime" and os.geteuid() and not id_map().is_single:
        command.append("--fakeroot")  # newuidmap does nothing inside of an image: the sub-ids have to be brought along
    if role == "trainer" and profile.trainer.device == "cuda":
        if not _NVIDIA.exists():  # `--nv` without a GPU succeeds, and says nothing
            raise SetupError(f"trainer.device = 'cuda', but {os.uname().nodename} shows no GPU ({_NVIDIA} is missing)")
        command.append("--nv")
    for path in _shown(directory, profile):
        command += ["--bind", str(path)]
    return [*command, *_trust(), str(image.absolute()), "python"]


def _trust() -> list[str]:
    """Options that put the machine's certificates in the place of the image's own."""
    bundle = certificates()
    if bundle is None:
        return []
    variables = ["SSL_CERT_FILE", *(name for name in _ITS_VARIABLES if name in os.environ)]
    told = [word for name in variables for word in ("--env", f"{name}={_BUNDLE}")]
    return ["--bind", f"{bundle}:{_BUNDLE}:ro", *told]


def _shown(directory: RunDirectory, profile: Profile) -> list[Path]:
    """What the role needs of the machine beside its home, which Apptainer shows by itself."""
    model = Path(profile.model.path).absolute()
    given = [path for path in (site_images(), model) if path.is_dir()]
    if socket := profile.runtime.podman_socket:
        given.append(socket.parent)  # a service that is started again makes a new socket
    if key_file := profile.runtime.api_key_file:
        given.append(key_file.absolute())
    paths = [directory.path, Path.cwd(), Path(tempfile.gettempdir()), cache_dir(), *given]
    return [path for number, path in enumerate(paths) if not any(map(path.is_relative_to, paths[:number]))]
