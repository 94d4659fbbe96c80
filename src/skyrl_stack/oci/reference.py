"""References: names of images, as `docker.io/swebench/x:latest` or `ghcr.io/y@sha256:…`, in their full form."""

import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import quote, unquote

from skyrl_stack.errors import SetupError

MADE_HERE = "localhost/"
"What the names of images begin with that no registry has."
_REFERENCE = re.compile(
    r"(?P<registry>[A-Za-z0-9.-]+(:\d+)?)/(?P<repository>[a-z0-9]+([._/-]+[a-z0-9]+)*)"
    r"(:(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?(@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_NAME_LIMIT = 250


@dataclass(frozen=True)
class Reference:
    """An image of a registry."""

    registry: str
    repository: str
    version: str
    "A tag, or a digest, which begins with `sha256:`."

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a reference; without a registry it is Docker Hub's, and without a version `latest`.

        Raises:
            SetupError: it is none.
        """
        first, slash, _ = text.partition("/")
        if not slash or not ({".", ":"} & set(first) or first == "localhost"):
            text = f"docker.io/{text}" if slash else f"docker.io/library/{text}"
        found = _REFERENCE.fullmatch(text)
        if found is None:
            raise SetupError(f"{text}: not the name of an image; write REGISTRY/REPOSITORY:TAG or …@sha256:DIGEST")
        reference = cls(found["registry"], found["repository"], found["digest"] or found["tag"] or "latest")
        if len(reference.file_name) > _NAME_LIMIT:
            raise SetupError(f"{text}: longer than {_NAME_LIMIT} characters")
        return reference

    @classmethod
    def of_file_name(cls, name: str) -> Self:
        """The inverse of `file_name`."""
        return cls.parse(unquote(name))

    @property
    def digest(self) -> str | None:
        return self.version if self.version.startswith("sha256:") else None

    @property
    def name(self) -> str:
        """Without the version."""
        return f"{self.registry}/{self.repository}"

    @property
    def file_name(self) -> str:
        """As the name of one file or directory."""
        return quote(str(self), safe="")

    def __str__(self) -> str:
        return f"{self.name}{'@' if self.digest else ':'}{self.version}"
