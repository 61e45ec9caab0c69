"""Builds the kernels' shared library (plain C ABI, no torch at build time); everything else is in pyproject.toml."""
from setuptools import setup

setup()
