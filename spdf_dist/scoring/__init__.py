"""Scores of generated texts: the official metrics, and readers of their input files. Does not need torch."""
