"""What train.py, sample.py and `unclip VERB` parse. Nothing here imports JAX before it must."""
