"""Constants of labels in training and evaluation."""

IGNORED = -100
"""Label of a position that the loss excludes."""
