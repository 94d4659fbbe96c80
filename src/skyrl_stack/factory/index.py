"""Package index: fetches pinned files over the simple API (PEP 691) into the cache, and trusts only their hash.

Neither pip nor uv is asked: `pip download` runs build backends of sdists for seconds, and uv cannot download.
The index is the one that uv or pip is told to use by their own variables.
"""

import base64
import hashlib
import json
import os
import re
import ssl
import urllib.parse
import urllib.request
from pathlib import Path

from skyrl_stack.errors import SetupError
from skyrl_stack.factory.catalogue import Artifact
from skyrl_stack.records import write_atomic

INDEX_VARIABLES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")
PUBLIC_INDEX = "https://pypi.org/simple"
TIMEOUT_S = 60.0


def fetch(artifact: Artifact, cache: Path) -> Path:
    """The file of `artifact` below `cache`, downloaded if it is not there yet.

    Raises:
        SetupError: no index has it, or what came is not what was pinned.
    """
    path = cache / artifact.file
    if path.is_file() and _digest(path.read_bytes()) == artifact.sha256:
        return path
    index = next((os.environ[name] for name in INDEX_VARIABLES if os.environ.get(name)), PUBLIC_INDEX)
    try:
        data = _get(_locate(artifact, index))
    except (OSError, ValueError) as error:
        shown = re.sub(r"//[^/@]*@", "//", index)
        raise SetupError(
            f"{artifact.file}: {shown} does not give it ({error}); name another in {INDEX_VARIABLES[0]}"
        ) from error
    if _digest(data) != artifact.sha256:
        raise SetupError(f"{artifact.file}: the index gives another content than the pinned sha256 {artifact.sha256}")
    cache.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data)
    return path


def _locate(artifact: Artifact, index: str) -> str:
    """Address of the file, absolute. An index that speaks only HTML (PEP 503) is understood too."""
    page = f"{index.rstrip('/')}/{artifact.project}/"
    body = _get(page, accept="application/vnd.pypi.simple.v1+json, text/html;q=0.2").decode()
    if body.lstrip().startswith("{"):
        links = {entry["filename"]: entry["url"] for entry in json.loads(body)["files"]}
    else:
        links = {re.sub(r"[#?].*|.*/", "", link): link for link in re.findall(r'href="([^"]+)"', body)}
    if artifact.file not in links:
        raise ValueError("not listed there")
    return urllib.parse.urljoin(page, links[artifact.file])


def _get(url: str, accept: str = "*/*") -> bytes:
    parts = urllib.parse.urlsplit(url)
    headers = {"Accept": accept, "User-Agent": "skyrl-stack"}
    if parts.username:
        secret = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(secret.encode()).decode()
        parts = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    request = urllib.request.Request(urllib.parse.urlunsplit(parts), headers=headers)
    certificates = os.environ.get("SSL_CERT_FILE") or os.environ.get("PIP_CERT")
    context = ssl.create_default_context(cafile=certificates or None)
    with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=context) as answer:
        return answer.read()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
