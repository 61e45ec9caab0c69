"""The distribution spdf-kernels: the kernels without the trainer. Everything else is in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).parent))
from build_library import library

setup(**library(Path("csrc")))
