"""What a file or folder holds: `unclip inspect`. Nothing that is looked at is executed."""
