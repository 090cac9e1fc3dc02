"""What the stages compute when they generate: pure functions of parameters, conditions and keys.

Each can be jitted, differentiated or replaced alone; `pipeline.py` batches and compiles them.
"""
