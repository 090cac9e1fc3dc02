"""From a recipe to trained weights: objectives, optimiser, sharded step, checkpoints, loop."""
