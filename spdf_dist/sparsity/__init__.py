"""Sparse masks of logical weights: their generator, patterns and digests. Independent of process groups."""
