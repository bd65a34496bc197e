"""Fixtures that every layer of the tests uses."""

from hypothesis import settings

pytest_plugins = ["tests.support.browser", "tests.support.s3server"]

# No test depends on being fast.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")
