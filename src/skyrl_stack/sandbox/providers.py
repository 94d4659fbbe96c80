"""Which sandboxes a launch gets: of a Podman behind a socket if the profile names one, else the best there is.

a cell of the launch's own      where there is Podman, and namespaces can be made
Apptainer                       where not; that is `weak`, which has to be asked for
"""

import shutil

from skyrl_stack.errors import SetupError
from skyrl_stack.runtime_section import RuntimeSection
from skyrl_stack.sandbox.apptainer.sandboxes import ApptainerSandboxes
from skyrl_stack.sandbox.engine_sandboxes import Common, EngineSandboxes
from skyrl_stack.sandbox.images import image_store_path
from skyrl_stack.sandbox.keeping import UNKEPT, Store
from skyrl_stack.sandbox.namespaces import require_user_namespaces
from skyrl_stack.sandbox.outside.sandboxes import SocketSandboxes
from skyrl_stack.sandbox.podman import PodmanSandboxes
from skyrl_stack.sandbox.podman_config import require_podman


def sandboxes_of(
    section: RuntimeSection, launch_id: str, *, run_directory: str, store: Store = UNKEPT
) -> EngineSandboxes:
    """The provider for a launch; nothing is started yet. In `store` is what a server before this one put away."""
    common = Common(
        run_directory=run_directory,
        output_limit=section.output_limit_kb * 1024,
        isolation=section.isolation,
        store=store,
    )
    if section.podman_socket:
        return SocketSandboxes(launch_id, section.podman_socket, **common)
    if reason := why_apptainer():
        return ApptainerSandboxes(launch_id, reason=reason, **common)
    return PodmanSandboxes(launch_id, image_stores=[image_store_path()], **common)


def why_apptainer() -> str:
    """Why this node can open no cell, where it has Apptainer instead; else nothing."""
    if shutil.which("apptainer") is None:
        return ""
    try:
        require_podman()
        require_user_namespaces()
    except SetupError as error:
        return str(error)
    return ""
