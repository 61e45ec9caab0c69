"""Makes tables, figures and one self-contained page from run and workflow folders. It only reads their files.

runs         a run folder
results      the runs and scores below folders, and the run of each score
variants     groups of runs that differ only in their seeds, their names, and the dense variant to compare with
scores       scores, grouped into the rows of tables
estimates    means over seeds, their intervals, differences paired by seed
tables       the tables; texts.yaml has their titles, notes and plain columns
plots        the figures of runs and scores; figures has what they share, style the colours
speedups     measurements of kernels
page         the parts of a report: tables, figures, sections, templates
write        the files of the report
"""
