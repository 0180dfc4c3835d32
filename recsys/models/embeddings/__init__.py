"""Embedding tables and their lookup: `lookup.Embeddings` over a backend, `plain` or `torchrec`."""
