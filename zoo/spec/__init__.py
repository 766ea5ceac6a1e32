"""Spec files: a model as TOML or JSON, its blocks, its schema and its diagram."""
