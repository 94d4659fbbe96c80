"""Which sandboxes a profile asks for: those of a cell of the launch's own, or of the Podman behind a socket."""

from skyrl_stack.runtime_section import RuntimeSection
from skyrl_stack.sandbox.images import image_store_path
from skyrl_stack.sandbox.keeping import UNKEPT, Store
from skyrl_stack.sandbox.outside.sandboxes import SocketSandboxes
from skyrl_stack.sandbox.podman import PodmanSandboxes

NodeSandboxes = PodmanSandboxes | SocketSandboxes
"Sandboxes of this node."


def sandboxes_of(
    section: RuntimeSection, launch_id: str, *, run_directory: str, store: Store = UNKEPT
) -> NodeSandboxes:
    """The provider for a launch; nothing is started yet. In `store` is what a server before this one put away."""
    output_limit = section.output_limit_kb * 1024
    if section.podman_socket:
        return SocketSandboxes(
            launch_id,
            section.podman_socket,
            run_directory=run_directory,
            output_limit=output_limit,
            isolation=section.isolation,
            owner=store.owner,
        )
    return PodmanSandboxes(
        launch_id,
        image_stores=[image_store_path()],
        run_directory=run_directory,
        output_limit=output_limit,
        isolation=section.isolation,
        store=store,
    )
