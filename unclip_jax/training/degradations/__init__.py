"""How the small pictures are spoiled that an upsampler is trained on: pure functions in JAX."""
