"""Topology-independent checkpoints: save, load at any layout, densify, inspect, and Hugging Face export and import."""
