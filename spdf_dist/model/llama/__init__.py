"""Llama: rotary positions, RMSNorm before each block, SwiGLU, grouped-query attention, no biases."""
