"""Settings of Iceberg that do not fit together stop the start, with what is allowed; secrets are never shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from arcpipe.config.load import load
from arcpipe.config.settings import Settings
from arcpipe.errors import ConfigError


def config(
    directory: Path, options: str = "", storage: str = "s3://bucket/x", table_format: str = "iceberg"
) -> Settings:
    file = directory / "config.toml"
    file.write_text(f'[storage]\nurl = "{storage}"\n[tables]\nformat = "{table_format}"\n[tables.iceberg]\n{options}\n')
    return load(file, {})


GOOD = [
    ("", "file:///lake"),
    ('warehouse = "file:///elsewhere"', "file:///lake"),
    ('catalog = "rest"\nuri = "https://h:8181/api"\nwarehouse = "any-name"', "file:///lake"),
    ('catalog = "rest"\nuri = "http://h"\ncredential = "id:secret"\nscope = "all"', "s3://bucket/x"),
    ('catalog = "postgresql"\nuri = "postgresql://u@h:5432/d"\npassword = "p"', "s3://bucket/x"),
    ('catalog = "glue"\nwarehouse = "s3://bucket/meta"', "s3://bucket/x"),
    ('catalog = "glue"\nuri = "http://127.0.0.1:5000"', "s3://bucket/x"),
]


@pytest.mark.parametrize(("options", "storage"), GOOD)
def test_what_fits_together_is_taken(tmp_path: Path, options: str, storage: str) -> None:
    assert config(tmp_path, options, storage).tables.format == "iceberg"


@pytest.mark.parametrize(
    ("options", "storage", "expected"),
    [
        ("", "s3://bucket/x", 'tables.iceberg.catalog = "sqlite": the SQLite catalogue is for one node'),
        ('warehouse = "s3://b/x"', "file:///lake", "the SQLite catalogue is for one node"),
        ('uri = "https://h"', "file:///lake", 'tables.iceberg.uri = "https://h": leave it empty'),
        ('catalog = "rest"', "s3://bucket/x", 'tables.iceberg.uri = "": name the REST catalogue'),
        ('catalog = "rest"\nuri = "postgresql://h/d"', "s3://bucket/x", "name the REST catalogue"),
        ('catalog = "postgresql"', "s3://bucket/x", "name the database: postgresql://user@host:port/database"),
        ('catalog = "glue"', "file:///lake", "Glue knows tables in S3 alone"),
        ('catalog = "glue"\nwarehouse = "name"', "s3://bucket/x", "allowed with this catalogue: s3://bucket/prefix"),
        ('catalog = "glue"\ntoken = "t0ken"', "s3://bucket/x", 'tables.iceberg.token = "********": it is of'),
        ('password = "pa55"', "file:///lake", 'it is of tables.iceberg.catalog = "postgresql" alone'),
        ('namespace_prefix = "A."', "file:///lake", "up to 64 lower-case letters, digits and underscores"),
        ('uri = "ftp://x"', "file:///lake", "postgresql://user@host:port/database"),
        ('catalog = "hive"', "file:///lake", '"sqlite", "rest", "postgresql", "glue"'),
    ],
)
def test_what_does_not_fit_is_said_with_what_is_allowed(
    tmp_path: Path, options: str, storage: str, expected: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)) as caught:
        config(tmp_path, options, storage)
    assert "t0ken" not in str(caught.value)
    assert "pa55" not in str(caught.value)


def test_settings_of_a_format_that_is_off_are_not_checked(tmp_path: Path) -> None:
    assert config(tmp_path, 'catalog = "rest"', table_format="none").tables.iceberg.catalog == "rest"


def test_secrets_are_masked_wherever_settings_are_shown(tmp_path: Path) -> None:
    rest = config(tmp_path, 'catalog = "rest"\nuri = "https://h"\ntoken = "s3cret1"\ncredential = "a:s3cret2"')
    uri = 'catalog = "postgresql"\nuri = "postgresql://u:s3cret3@h/d"\npassword = "s3cret4"'
    for settings in (rest, config(tmp_path, uri)):
        shown = " ".join(str(one.value) for one in settings.effective())
        assert "s3cret" not in f"{shown} {settings!r}"
        assert "********" in shown
