"""GPT-2: learned positions, LayerNorm before each block, tanh GELU, biases, tied output layer (paper, Table 1)."""
