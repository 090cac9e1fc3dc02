"""What a file in `configs/` holds: one frozen dataclass for each stage that can be trained."""
