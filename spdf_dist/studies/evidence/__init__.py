"""The study of the paper's hypotheses: its rows, its verdicts, and its section of the report."""
