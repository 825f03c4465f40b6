"""Another way to write the model's own text, sooner or as it is."""
