"""Runs: train, check and publish one; find one again; show it as a card, a page or event files."""
