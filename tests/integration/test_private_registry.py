"""Task images of a registry that asks who is there: the real one of Debian, by a password and by tokens."""

import base64
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest

from skyrl_stack.oci.reference import Reference
from skyrl_stack.oci.store import SiteStore

pytestmark = [pytest.mark.podman, pytest.mark.timeout(120)]

USER, PASSWORD = "somebody", "s3cret-of-tests"
HTPASSWD = f"{USER}:$2b$05$Qq0D3z61SB3hPVwnROoDH.fpLEDITU6LhjGyaQg6jsyuCqbxCpP3K\n"
"Of PASSWORD, as `htpasswd -B` writes it."
BASIC = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
SERVICE, ISSUER = "tests-registry", "tests-issuer"


class TokenServer:
    """Signs tokens for whoever knows the password. Source: the distribution project's token authentication."""

    def __init__(self, directory: Path) -> None:
        self.bundle, key = directory / "issuer.pem", directory / "issuer.key"
        made = ["-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(self.bundle), "-subj", "/CN=tests"]
        subprocess.run(["openssl", "req", "-x509", *made], capture_output=True, check=True)
        self.key = key.read_bytes()
        self.chain = ["".join(self.bundle.read_text().splitlines()[1:-1])]
        self.given: list[str] = []

    def token(self, scope: str) -> str:
        kind, name, actions = scope.split(":")
        now = int(time.time())
        claims = {"iss": ISSUER, "aud": SERVICE, "sub": USER, "nbf": now - 10, "iat": now, "exp": now + 60, "jti": "1"}
        claims["access"] = [{"type": kind, "name": name, "actions": actions.split(",")}]
        self.given.append(jwt.encode(claims, self.key, "RS256", {"x5c": self.chain}))
        return self.given[-1]


@contextmanager
def token_server(tokens: TokenServer) -> Iterator[str]:
    """Its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            knows = self.headers["Authorization"] == f"Basic {BASIC}"
            scope = parse_qs(urlsplit(self.path).query)["scope"][0]
            body = json.dumps({"token": tokens.token(scope)} if knows else {}).encode()
            self.send_response(200 if knows else 401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/token"
    finally:
        server.shutdown()
        server.server_close()


@dataclass(frozen=True)
class Private:
    """A registry that shows what another one has to those who have logged in."""

    address: str
    tokens: list[str]
    "That were given for it, of a registry with tokens."

    @property
    def image(self) -> Reference:
        return Reference(self.address, "tests/tiny", "1")


@pytest.fixture(params=["basic", "token"])
def private(request: pytest.FixtureRequest, registry: str, tmp_path: Path) -> Iterator[Private]:
    with socket.create_server(("127.0.0.1", 0)) as place:
        address = f"127.0.0.1:{place.getsockname()[1]}"
    tokens = TokenServer(tmp_path)
    with token_server(tokens) as realm:
        (tmp_path / "htpasswd").write_text(HTPASSWD)
        basic = {"htpasswd": {"realm": "tests", "path": str(tmp_path / "htpasswd")}}
        bearer = {"realm": realm, "service": SERVICE, "issuer": ISSUER, "rootcertbundle": str(tokens.bundle)}
        settings = {
            "version": "0.1",
            "storage": {"filesystem": {"rootdirectory": str(tmp_path / "registry")}},
            "http": {"addr": address},
            "proxy": {"remoteurl": f"http://{registry}"},
            "auth": basic if request.param == "basic" else {"token": bearer},
        }
        (tmp_path / "registry.yml").write_text(json.dumps(settings))
        argv = ["docker-registry", "serve", str(tmp_path / "registry.yml")]
        server = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 20
            while not answers(address):
                assert server.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            yield Private(address, tokens.given)
        finally:
            server.kill()
            server.wait()


def answers(address: str) -> bool:
    host, _, port = address.partition(":")
    with socket.socket() as trial:
        return trial.connect_ex((host, int(port))) == 0


def pull(private: Private, login: Path, site: Path) -> tuple[int, str]:
    """Exit code and output of the command, for a person whose logins are in the file `login`."""
    argv = [sys.executable, "-c", "from skyrl_stack.cli import main; main()", "images", "pull", str(private.image)]
    environment = os.environ | {"SKYRL_IMAGES": str(site), "REGISTRY_AUTH_FILE": str(login)}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("known", [None, "somebody:wrong"], ids=["no login", "a wrong password"])
def test_who_may_not_have_it_is_told_how_to_log_in(private: Private, tmp_path: Path, known: str | None) -> None:
    login = tmp_path / "auth.json"
    if known:
        login.write_text(auth_file(private.address, base64.b64encode(known.encode()).decode()))
    code, printed = pull(private, login, tmp_path / "site")
    assert code == 1
    reason = f"there is no such image, or it needs a login: `podman login {private.address}`"
    assert printed == f"skyrl-stack: cannot pull {private.image}: {reason}\n"
    assert not SiteStore(tmp_path / "site").find(private.image)


def test_who_has_logged_in_gets_it_and_nothing_keeps_the_password(private: Private, tmp_path: Path) -> None:
    login, site = tmp_path / "auth.json", tmp_path / "site"
    login.write_text(auth_file(private.address, BASIC))
    code, printed = pull(private, login, site)
    assert code == 0, printed
    assert SiteStore(site).find(private.image)
    said = printed + "".join(file.read_bytes().decode(errors="replace") for file in site.rglob("*") if file.is_file())
    for secret in (PASSWORD, BASIC, *private.tokens):
        assert secret not in said


def auth_file(registry: str, basic: str) -> str:
    """As `podman login` leaves it. Source: containers-auth.json(5)."""
    return json.dumps({"auths": {registry: {"auth": basic}}})
