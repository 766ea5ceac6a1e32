"""Training parity: two backends compared step by step, and whether their accuracies are equivalent."""
