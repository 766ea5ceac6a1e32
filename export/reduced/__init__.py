"""Smaller files: int8 and float16, and how much accuracy they cost."""
