"""Sandboxes of Apptainer: the last rung, for a node where a runtime can open no cell of its own."""
