"""What the rooms of this package share: hypotheses, drivers, scorers and units."""
