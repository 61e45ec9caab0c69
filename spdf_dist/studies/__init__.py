"""Studies that extend the report: the evidence study, and the paper's tables beside our results."""
