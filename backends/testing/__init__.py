"""The published tests of a backend: whoever writes one holds it to what torch and Keras are held to.

It needs pytest, which nothing else of the zoo does, and no framework but the backend's own.

>>> from zoo.testing import BackendTests
>>> class TestMine(BackendTests):
...     backend = "mine"  # the name of the entry point
"""

import pytest

pytest.register_assert_rewrite("backends.testing.conformance")  # so that a failed assert shows its values

from backends.testing.conformance import BackendTests  # noqa: E402

__all__ = ["BackendTests"]
