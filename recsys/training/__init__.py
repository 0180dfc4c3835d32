"""How a model is fitted: objective, optimizers, checkpoints and the one loop.

Importing this package does nothing; import the room you need (`recsys.training.trainer`, ...).
"""
