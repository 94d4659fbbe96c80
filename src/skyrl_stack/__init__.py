"""Reinforcement learning of coding agents on Slurm clusters: rootless sandboxes, real tests, verl."""

__version__ = "0.1.0"
