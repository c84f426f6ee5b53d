"""docs/metrics.md lists every Prometheus series of the service, with what it says, and no other."""

import re
from pathlib import Path

from service.metrics import Metrics

_LIST = Path(__file__).parents[2] / "docs" / "metrics.md"
_ROW = re.compile(r"^\| `(reeltalk_\w+)` \| (\w+) \| (.*?) \| (.*?) \| (.*) \|$", re.MULTILINE)


def test_the_list_has_every_series_with_its_kind_unit_and_meaning() -> None:
    served = {
        (
            family.name + ("_total" if family.type == "counter" else ""),
            family.type,
            _unit(family.name),
            family.documentation,
        )
        for family in Metrics().registry.collect()
    }
    listed = [(name, kind, unit, text) for name, kind, _, unit, text in _ROW.findall(_LIST.read_text())]
    assert sorted(listed) == sorted(served)


def _unit(name: str) -> str:
    for suffix in ("seconds", "bytes", "ratio"):
        if name.endswith(f"_{suffix}"):
            return suffix
    return "count"
