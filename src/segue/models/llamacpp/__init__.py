"""llama.cpp's side of the house: weights in its own format."""
