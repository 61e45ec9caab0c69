"""Scores of generated texts: the official metrics, and the files that they read. Needs no torch."""
