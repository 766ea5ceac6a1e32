"""Keras 3 on any of its engines: its lowering, its network and its training."""

from backends.addresses import lazily

__getattr__ = lazily(__name__, {"lower": "lowering", "KerasNetwork": "network", "KerasBackend": "backend"})
