"""What OpenHands and litellm read from the process environment, set before either is imported."""

import atexit
import logging
import os
import secrets
import shutil
import tempfile
from pathlib import Path

from skyrl_stack.scratch import PREFIX, Owner

_VARIABLES = {
    # Without it litellm fetches its price list at import, and on a machine without a network fails at random.
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "OPENHANDS_SUPPRESS_BANNER": "1",
    # OpenHands refuses fewer than 16,384 tokens otherwise; the context is the profile's to choose.
    "ALLOW_SHORT_CONTEXT_WINDOWS": "true",
    # The root logger belongs to the trainer.
    "LOG_AUTO_CONFIG": "false",
}


def prepare() -> None:
    """Set the variables, and give OpenHands a private state directory instead of the user's home.

    What a policy does wrong is OpenHands' warning or error log line, thousands of times a run; it is
    already in the trajectory and the episode's record, so only critical messages are kept.
    """
    os.environ.update(_VARIABLES)
    logging.getLogger("openhands").setLevel(logging.CRITICAL)
    directory = Path(tempfile.gettempdir()) / f"{PREFIX}openhands-{os.getpid()}-{secrets.token_hex(4)}"
    os.environ["OH_PERSISTENCE_DIR"] = str(directory)
    atexit.register(shutil.rmtree, directory, ignore_errors=True)


def state_directory() -> Path:
    """OpenHands' local state: a private directory of this process, made on first use and removed at its end.

    After a crash `skyrl-stack sweep` removes it, by the owner that it names.
    """
    directory = Path(os.environ["OH_PERSISTENCE_DIR"])
    if not directory.is_dir():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        Owner.this_process().sign(directory)
    return directory
