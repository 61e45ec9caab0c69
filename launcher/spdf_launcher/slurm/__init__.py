"""Slurm: batch scripts, submission that never doubles a job, and states with or without slurmdbd."""
