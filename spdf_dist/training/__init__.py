"""One loop for pre-training and fine-tuning, over a DeepSpeed engine; what differs is data, mask and schedule."""
