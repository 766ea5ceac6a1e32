"""What is fast, and how that was measured: paired comparisons in one run. Not installed with the zoo."""
