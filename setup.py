"""The packages of the distribution and the kernels' library. Everything else is in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import find_packages, setup

sys.path.insert(0, str(Path(__file__).parent / "kernels"))
from build_library import library

setup(
    packages=[
        *find_packages(include=["spdf_dist", "spdf_dist.*"]),
        *find_packages("launcher"),
        *find_packages("kernels", include=["spdf_kernels", "spdf_kernels.*"]),
        "spdf_configs",
        "spdf_configs.finetune",
        "spdf_configs.workflows",
    ],
    package_data={
        "": ["*.yaml"],
        "spdf_dist": [
            *("data/tasks/published/*.csv", "report/*.j2", "report/*.mplstyle"),
            *("studies/evidence/*.j2", "studies/paper/*.csv"),
        ],
    },
    **library(Path("kernels/csrc")),
)
