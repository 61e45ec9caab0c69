"""GPT as a megatron-core GPTModel whose linears may be sparse; no training code."""
