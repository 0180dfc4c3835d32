"""Bottoms: from blocks to the input of the mixing stage, [N, I], or [N, T, I] when every task has its own."""
