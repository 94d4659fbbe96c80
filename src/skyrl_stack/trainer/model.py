"""The policy that training starts from, linked into the run directory."""

from pathlib import Path

from skyrl_stack.errors import SetupError
from skyrl_stack.profile import Profile
from skyrl_stack.run_directory import RunDirectory

TINY = "tiny"


def ensure_model(directory: RunDirectory, profile: Profile) -> None:
    """Link `directory.model`, unless an earlier launch has; makes the tiny model where it is not in the cache.

    Raises:
        SetupError: the profile's model cannot be had.
        InfrastructureError: the tiny model's traces could not be made.
    """
    if directory.model.exists():
        return
    target = _find(directory, profile)
    directory.model.unlink(missing_ok=True)  # a link to a cache that somebody has emptied
    directory.model.symlink_to(target)
    print(f"trainer: model {target}", flush=True)


def _find(directory: RunDirectory, profile: Profile) -> Path:
    path = profile.model.path
    if path == TINY:
        from skyrl_stack.trainer.tiny.make import find_or_make

        return find_or_make(directory, profile)
    if Path(path).is_dir():
        return Path(path).absolute()
    return _download(path)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name))
    except (OSError, ValueError) as error:
        first_line = str(error).splitlines()[0]
        raise SetupError(
            f"model.path = {name}: neither a directory nor to be had from the Hub: {first_line}"
        ) from error
