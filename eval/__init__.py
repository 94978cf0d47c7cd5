"""What a model answers, how fast, and whether that keeps its budgets."""
