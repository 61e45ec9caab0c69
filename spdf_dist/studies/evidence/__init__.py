"""The study of the paper's hypotheses: its rows, the verdicts, and a section of the report."""
