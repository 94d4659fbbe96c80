"""Credentials for registries, from where `podman login`, `skopeo login` and `docker login` leave them."""

import base64
import json
import os
from pathlib import Path


def credentials(registry: str) -> tuple[str, str] | None:
    """(user, password) for `registry`, or None. Source: containers-auth.json(5). Credential helpers are not asked."""
    names = (registry, "https://index.docker.io/v1/") if registry == "docker.io" else (registry,)
    for file in _files():
        try:
            known = json.loads(file.read_bytes()).get("auths", {})
            entry = next((known[name]["auth"] for name in names if known.get(name, {}).get("auth")), None)
            if entry:
                user, _, password = base64.b64decode(entry).decode().partition(":")
                return user, password
        except (OSError, ValueError, AttributeError, TypeError):
            continue
    return None


def _files() -> list[Path]:
    named = [os.environ[name] for name in ("REGISTRY_AUTH_FILE",) if name in os.environ]
    runtime = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
    configured = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    docker = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    return [
        *map(Path, named),
        Path(runtime) / "containers/auth.json",
        configured / "containers/auth.json",
        docker / "config.json",
    ]
