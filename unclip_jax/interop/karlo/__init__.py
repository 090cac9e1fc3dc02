"""Karlo and Kandinsky: kakaobrain's unCLIP, from diffusers' folders and from its own files."""
