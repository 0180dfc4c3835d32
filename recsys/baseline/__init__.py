"""An honest outsider: boosted trees on the same encoded rows, measured as a model is.

Importing this package does nothing; import `recsys.baseline.baseline`.
"""
