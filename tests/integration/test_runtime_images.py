"""The image store against a real registry, which runs in a container of its own."""

import pytest

pytestmark = [pytest.mark.podman, pytest.mark.timeout(180)]
