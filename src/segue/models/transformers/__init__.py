"""transformers models as language models of the house: our attention, caches and linears, nothing re-implemented."""
