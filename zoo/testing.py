"""The published tests of a backend, under the address that plug-ins import; they are in backends.testing."""

from backends.testing import BackendTests as BackendTests  # noqa: TID251  (this is but an address)
