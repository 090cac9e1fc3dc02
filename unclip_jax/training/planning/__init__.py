"""What a run will cost, known before any device is there: operations, memory, time."""
