"""Where (picture, caption) pairs come from, and how they become batches of arrays.

numpy only at import time: nothing in here imports jax until a Grain data set is made.
"""
