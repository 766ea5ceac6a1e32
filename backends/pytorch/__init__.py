"""PyTorch: its lowering, its network and its training."""

from backends.addresses import lazily

__getattr__ = lazily(__name__, {"lower": "lowering", "TorchNetwork": "network", "TorchBackend": "backend"})
