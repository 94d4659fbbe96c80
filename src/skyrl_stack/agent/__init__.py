"""The agent: OpenHands in this process, its commands in a sandbox, its tokens exact."""

from skyrl_stack.agent.openhands_env import prepare

prepare()  # before any module of this package imports OpenHands: it reads its variables at import
