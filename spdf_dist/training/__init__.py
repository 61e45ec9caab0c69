"""One training loop over a DeepSpeed engine. Pre-training and fine-tuning differ in data, masks and schedule."""
