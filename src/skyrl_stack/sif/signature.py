"""A signature in a SIF file: who vouches for the image, by a PEM key or by PGP. The lock knows the signed file, too."""

import os
import shutil
import subprocess
from pathlib import Path

from skyrl_stack.errors import SetupError
from skyrl_stack.sif import apptainer
from skyrl_stack.sif.lock import ImagesLock, sha256


def sign(image: Path, key: Path | None, lock_file: Path) -> None:
    """Put a signature into `image`, which the lock has to know, by the private PEM key or else by PGP's key ring.

    Asks for a passphrase where the key has one.

    Raises:
        SetupError: it is not the image of the lock, or was not signed; it is as it was.
    """
    apptainer.require()
    lock = ImagesLock.read(lock_file)
    locked = lock.verify(image.stem, image)
    draft = image.with_name(f".{image.name}.{os.getpid()}")
    try:
        shutil.copyfile(image, draft)
        draft.chmod(0o755)
        if subprocess.run(["apptainer", "sign", *_by(key), str(draft)], check=False).returncode:
            raise SetupError(f"{image}: not signed (above)")
        lock.with_image(image.stem, locked.model_copy(update={"signed": sha256(draft)})).write(lock_file)
        draft.replace(image)
    except OSError as error:
        raise SetupError(f"{image}: cannot be written ({error.strerror})") from error
    finally:
        draft.unlink(missing_ok=True)


def require_signature(image: Path, key: Path | None) -> None:
    """See that all of `image` is signed, by the public PEM key or else by one of PGP's key ring.

    Raises:
        SetupError: it is not, or not by that key.
    """
    command = ["apptainer", "verify", "--all", *_by(key), str(image)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        by = f"by {key}" if key else "by a key of the key ring (`apptainer key list`)"
        raise SetupError(f"{image}: no good signature {by}: {apptainer.last(answer.stderr.splitlines())}")


def _by(key: Path | None) -> list[str]:
    return ["--key", str(key)] if key else []
