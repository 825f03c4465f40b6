"""What drafters share that were trained beside the target."""
