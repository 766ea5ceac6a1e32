"""The published tests of a backend, on this one."""

from zoo.testing import BackendTests


class TestJax(BackendTests):
    backend = "jax"
