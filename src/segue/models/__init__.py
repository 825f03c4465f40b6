"""Everything that runs a network; the only part of Segue that imports transformers."""
