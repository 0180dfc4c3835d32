"""Training over several ranks: where the rows of each table lie, and whether they fit."""
