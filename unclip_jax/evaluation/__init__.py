"""How good a model is, measured: scores of embeddings, and the report of `unclip evaluate`."""
