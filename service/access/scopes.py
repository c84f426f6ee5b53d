"""The words that an API key is described by: scope, tenant, priority. Imports nothing, so that a command line may."""

import re
from enum import StrEnum

LOCAL = "local"
"""The tenant of a service without keys."""
TENANT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
"""It becomes part of names in Redis and of paths."""
MAX_PRIORITY = 9


class Scope(StrEnum):
    """What a key is for."""

    USE = "use"
    """Videos, sessions and answers of its tenant."""
    METRICS = "metrics"
    ADMIN = "admin"
