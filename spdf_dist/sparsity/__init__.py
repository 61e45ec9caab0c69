"""What is sparse: masks of logical weights, their generator, patterns and digests. Knows no process group."""
