"""verl on a machine without an accelerator, by verl's own plugin registries."""
