"""The evidence study, ``configs/workflows/study_cpu.yaml``, and its results in the report.

study.yaml   claims, the grid points behind each result, words of tables and figures, columns of evidence.csv
rows         the runs as rows of a table
rules        verdicts by Student's interval
losses       H1 and H2: losses after fine-tuning
sizes        H3: loss over the model size
rates        loss over the learning rate
methods      methods and blocks at equal FLOPs
law          the scaling law and its fit
budgets      the results of the law: which density at a FLOP budget
section      all of it in reading order, in the report and in pages of the documentation
"""
