"""Stands before PyTorch where a drill is about Slurm: its trainer is the real one up to here, and costs no more."""

import time

time.sleep(3600)
