"""The evidence study, configs/workflows/study_cpu.yaml: its runs as rows, its rules, and its results in the report."""
