"""The tiny model: a policy small enough to train on a CPU, made here from nothing and given a mediocre start."""
