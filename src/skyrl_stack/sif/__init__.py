"""The frozen images of the two roles: from a definition and uv.lock to a SIF file that a lock knows."""
