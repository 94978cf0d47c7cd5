"""Further training text, made from the training text."""
