"""What is fast, and how that was measured: paired comparisons in one run. Not installed with the zoo."""

import os

# Set in many images, it has every process compile what it imports anew: a benchmark would time the compiler.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
