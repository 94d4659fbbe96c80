"""The certificates that this machine trusts: a site's proxy may sign with a key that no public bundle has."""

import os
import ssl
from pathlib import Path


def certificates() -> Path | None:
    """The bundle of `SSL_CERT_FILE`, else OpenSSL's own; None where there is none."""
    bundle = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile
    return Path(bundle).resolve() if bundle and Path(bundle).is_file() else None
