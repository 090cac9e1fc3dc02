"""Flax Linen modules: pure `init` and `apply`, no mesh, no files, no sampling."""
