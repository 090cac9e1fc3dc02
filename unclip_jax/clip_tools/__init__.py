"""What a CLIP does without drawing: it classifies, captions and finds pictures.

All of it compares embeddings of unit norm by their cosine.
"""
