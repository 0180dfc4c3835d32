"""What a model's predictions are worth: metrics by task, expert diagnosis, the evaluation itself.

Importing this package does nothing; import the room you need (`recsys.evaluation.metrics`, ...).
"""
