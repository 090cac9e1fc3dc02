"""DALLE2-pytorch (lucidrains, LAION): its networks, samplers and checkpoints, with its maths."""
