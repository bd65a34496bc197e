"""Fixtures that every layer of the tests uses."""

pytest_plugins = ["tests.s3server"]
