"""GPT-2: learned positions, layer norm before each block, tanh GELU, biases, tied output layer (paper, Table 1)."""
