"""What makes models smaller, and what it cost: quantization, pruning, fewer KV heads, healing, perplexity."""
