"""Heads: from one representation a task, [B, T, H], to logits [B, T]; a `given` task's logit is its joint one."""
