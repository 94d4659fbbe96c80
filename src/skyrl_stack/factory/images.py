"""Task images: base, then what tests need, then a repository; each a thin layer on the one before.

    base ── requirements ──┬── sound repository      tests are measured in it; no agent sees it
                           └── buggy repository      a task: has only the buggy commit, in no layer the fix

Requirements are shared by projects that need the same, so a task adds no more than its repository.
"""

import hashlib
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from skyrl_stack.factory.catalogue import Artifact, Project
from skyrl_stack.factory.index import fetch
from skyrl_stack.factory.rows import REQUIREMENTS
from skyrl_stack.sandbox.images import ImageStore
from skyrl_stack.scratch import scratch
from skyrl_stack.tasks.task import REPOSITORY

# Compiled here once, since tests run with PYTHONDONTWRITEBYTECODE in sandboxes that start from scratch.
WITH_REQUIREMENTS = f"""\
FROM {{base}}
COPY files/ /
RUN python3 -m compileall -q {REQUIREMENTS}
ENV PYTHONPATH={REQUIREMENTS}:{REPOSITORY}/src:{REPOSITORY}
WORKDIR {REPOSITORY}
"""
WITH_REPOSITORY = """\
FROM {base}
COPY files/ /
"""


async def ensure_requirements(store: ImageStore, base: str, wheels: Iterable[Artifact], cache: Path) -> str:
    """Reference of `base` with `wheels` unpacked in it."""
    wheels = tuple(wheels)
    reference = f"localhost/skyrl-stack/requirements:{digest(base, WITH_REQUIREMENTS, *(w.sha256 for w in wheels))}"
    if not await store.has(reference):
        with scratch("image") as context:
            for wheel in wheels:
                with zipfile.ZipFile(fetch(wheel, cache)) as archive:
                    archive.extractall(context / "files" / REQUIREMENTS.lstrip("/"))
            await _build(store, context, WITH_REQUIREMENTS.format(base=base), reference)
    return reference


async def ensure_repository(store: ImageStore, requirements: str, project: Project, root: Path, commit: str) -> str:
    """Reference of `requirements` with the repository `root`, which is at `commit`, in it. `root` is moved away."""
    reference = f"localhost/skyrl-stack/task:{project.name}-{digest(requirements, WITH_REPOSITORY, commit)}"
    if not await store.has(reference):
        with tempfile.TemporaryDirectory(dir=root.parent) as context:
            files = Path(context) / "files"
            metadata = f"{project.name.replace('-', '_')}-{project.version}.dist-info"
            installed = files / REQUIREMENTS.lstrip("/") / metadata
            installed.mkdir(parents=True)
            # What an installation would leave: importlib.metadata answers, and no build backend had to run.
            (installed / "METADATA").write_bytes((root / "PKG-INFO").read_bytes())
            root.rename(files / REPOSITORY.lstrip("/"))
            await _build(store, Path(context), WITH_REPOSITORY.format(base=requirements), reference)
    return reference


async def _build(store: ImageStore, context: Path, containerfile: str, reference: str) -> None:
    (context / "Containerfile").write_text(containerfile)
    await store.build(context, reference)


def digest(*parts: str) -> str:
    """A short content key of `parts`."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
