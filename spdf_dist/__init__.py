"""SPDF: sparse pre-training and dense fine-tuning of language models (Thangarasa et al., 2023)."""

__version__ = "0.1.0"
