"""Multi-task ranking: schema, encoder, models, training, evaluation, export.

Importing this package does nothing; import the room you need (`recsys.schema`, `recsys.training.trainer`, ...).
"""
