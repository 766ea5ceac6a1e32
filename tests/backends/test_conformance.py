"""Torch and Keras under the published tests of a backend."""

from __future__ import annotations

import pytest

from backends.testing import BackendTests
from zoo.network import Backend


class TestFrameworks(BackendTests):
    @pytest.fixture
    def loaded(self, backend: Backend) -> Backend:
        return backend
