"""This package beside a PyTorch reference: the same weights, inputs and noise, block by block."""
