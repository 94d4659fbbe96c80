"""A Podman outside of the launch, behind a socket: its API, its images, and sandboxes that end with their runtime."""
