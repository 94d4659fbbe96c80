"""Runs a whole script in a sandbox, and brings all that it printed back: how tests are measured and graded."""

import secrets

from pydantic import BaseModel, ConfigDict

from skyrl_stack.sandbox.contract import FileMissing, Sandbox

LOG_LIMIT_MB = 16
"A longer log loses its end."


class ScriptRun(BaseModel):
    """What one run of a script said."""

    model_config = ConfigDict(frozen=True)

    log: str
    "stdout and stderr, as they came. Empty where the script destroyed it, timed out or was killed."
    timed_out: bool
    seconds: float


async def run_script(sandbox: Sandbox, script: str, *, timeout_s: float) -> ScriptRun:
    """Run `script` by /bin/bash. Its output goes through a file, for that of a command is capped in the middle.

    Raises:
        SandboxLost: the sandbox is gone.
    """
    directory = f"/tmp/script-{secrets.token_hex(8)}"
    await sandbox.write_file(f"{directory}/script.sh", script.encode())
    # Of the log a new file, for the script may have made anything of it.
    command = (
        f"/bin/bash {directory}/script.sh > {directory}/log 2>&1 < /dev/null; "
        f"head --bytes={LOG_LIMIT_MB}M {directory}/log > {directory}/result"
    )
    done = await sandbox.run(command, timeout_s=timeout_s)
    try:
        log = await sandbox.read_file(f"{directory}/result")
    except FileMissing:
        log = b""
    return ScriptRun(log=log.decode(errors="replace"), timed_out=done.timed_out, seconds=done.duration_s)
