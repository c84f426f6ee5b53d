"""Hooks for schemathesis: the content of uploads is raw bytes."""

import schemathesis

schemathesis.serializer.alias("application/offset+octet-stream", "application/octet-stream")
