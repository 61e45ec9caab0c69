"""Language models as megatron-core GPTModels whose linears may be sparse. It holds no training code."""
