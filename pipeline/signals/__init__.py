"""What a forward pass exposes, and the arithmetic that compares two of them."""
