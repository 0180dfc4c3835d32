"""Mixing: from the bottom's output, [B, I] or [B, T, I], to one representation a task, [B, T, H]."""
