"""The properties of an API key: scopes, tenant names, priorities. Has no imports, so that commands start fast."""

import re
from enum import StrEnum

LOCAL = "local"
"""The tenant of a service without keys."""
TENANT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
"""Tenant names become part of Redis keys and of paths."""
MAX_PRIORITY = 9


class Scope(StrEnum):
    """What a key gives access to."""

    USE = "use"
    """Videos, sessions and answers of its tenant."""
    METRICS = "metrics"
    ADMIN = "admin"
