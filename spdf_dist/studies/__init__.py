"""Studies on top of the report: the evidence study, and the paper's tables beside ours."""
