"""Text under another objective than the model's probability: found by search, sampled, constrained, reranked."""
