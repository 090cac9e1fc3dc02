"""Foreign checkpoints: what they hold, how their tensors become ours, and the way back."""
