"""What training and evaluation agree on about labels."""

IGNORED = -100
"""Label of a position that is not in the loss."""
