"""Fixtures that every layer of the tests uses."""

pytest_plugins = ["tests.browser", "tests.s3server"]
