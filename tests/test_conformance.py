"""Torch and Keras under the published tests of a backend."""

from __future__ import annotations

import pytest

from zoo.network import Backend
from zoo.testing import BackendTests


class TestFrameworks(BackendTests):
    @pytest.fixture
    def loaded(self, backend: Backend) -> Backend:
        return backend
