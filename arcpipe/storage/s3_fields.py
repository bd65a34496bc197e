"""Fields of requests that make an object in S3. This module imports no SDK: writers of tables have another one."""

from __future__ import annotations

from arcpipe.config.settings import StorageS3


def fields_of_objects(options: StorageS3) -> dict[str, str]:
    """Return the SDK's fields of each request that makes an object: how the server keeps it."""
    found = {
        "ServerSideEncryption": options.server_side_encryption,
        "SSEKMSKeyId": options.kms_key_id,
        "StorageClass": options.storage_class,
    }
    return {field: value for field, value in found.items() if value}
