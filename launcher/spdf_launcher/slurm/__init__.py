"""Slurm: batch scripts, submission of each job exactly once, and job states with or without slurmdbd."""
