"""Clients: trainers of other launches. They give signs of life over HTTP, for they share no run directory with us."""

import time


class Clients:
    """When each client was last heard. One that was silent for `timeout_s` is gone, and so are its sandboxes."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._heard: dict[str, float] = {}

    def heard(self, client: str) -> None:
        """A sign of life."""
        self._heard = {each: at for each, at in self._heard.items() if not self.is_gone(each)}
        self._heard[client] = time.monotonic()

    def leaves(self, client: str) -> None:
        """It has said that it is gone."""
        self._heard.pop(client, None)

    def is_gone(self, client: str) -> bool:
        return client not in self._heard or time.monotonic() - self._heard[client] > self.timeout_s
