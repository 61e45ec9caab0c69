"""The paper's tables and figures with ours beside the printed numbers, as a section of the report."""
