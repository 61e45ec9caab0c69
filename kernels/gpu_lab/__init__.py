"""Measures the GPU kernels and training steps on a machine with an NVIDIA GPU, in one run of a few minutes.

`python -m gpu_lab run` measures, `pack` collects packages for a machine without internet, `report` prints the results.
"""
