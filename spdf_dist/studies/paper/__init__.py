"""The paper's tables and figures with our results beside the printed numbers, as a section of the report."""
