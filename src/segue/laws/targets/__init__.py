"""What methods that follow another target than the model's distribution are held to: one brute force a file, found by
the name that a card gives its target."""
