"""Llama: rotary positions, RMS norm before each block, SwiGLU, grouped-query attention, no biases."""
