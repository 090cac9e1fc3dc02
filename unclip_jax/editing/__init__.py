"""Edits: pictures from pictures (Ramesh et al. 2022, section 3, and what DALL-E 2 offered).

`settings` says what can be asked for, without JAX; `drawing` draws any of it.
"""
