"""Checkpoints that know no topology: save, load at any layout, densify, inspect, Hugging Face export and import."""
