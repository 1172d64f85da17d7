"""libeverface, installed."""

from tests.csrc.conftest import prefix  # noqa: F401 a fixture
