"""docker/prometheus and docker/grafana use only existing metrics; each alert is documented and tested."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from service.observability.metrics import Metrics

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "docker" / "prometheus"
DASHBOARD = ROOT / "docker" / "grafana" / "dashboards" / "reeltalk.json"

_SERIES = re.compile(r"\b((?:reeltalk|process)_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_BY = re.compile(r"\b(?:by|on) \(([^)]*)\)")
_ADDED_BY_PROMETHEUS = {"instance", "job", "le"}


def rules() -> list[dict[str, str]]:
    [group] = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"]
    found: list[dict[str, str]] = group["rules"]
    return found


def expressions() -> list[str]:
    """Every PromQL expression of the dashboard and of the rules."""
    dashboard = json.loads(DASHBOARD.read_text())
    drawn = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    variables = [variable["definition"] for variable in dashboard["templating"]["list"] if "definition" in variable]
    return [*drawn, *variables, *(rule["expr"] for rule in rules())]


def served() -> dict[str, set[str]]:
    """Every name in /metrics with its labels."""
    metrics = Metrics()
    declared = (*vars(metrics).values(), *vars(metrics.by_model).values())
    labels = {series._name: set(series._labelnames) for series in declared if isinstance(series, MetricWrapperBase)}
    found: dict[str, set[str]] = {}
    for family in metrics.registry.collect():
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        found |= {family.name + suffix: labels.get(family.name, set()) for suffix in suffixes}
    return found


def unknown_names(expression: str, known: dict[str, set[str]]) -> set[str]:
    """The names and labels of an expression that do not exist in `known`."""
    named = _SERIES.findall(expression)
    allowed = _ADDED_BY_PROMETHEUS.union(*(known.get(name, set()) for name, _ in named))
    labels = {label for _, matchers in named for label in _MATCHER.findall(matchers)}
    labels |= {label.strip() for grouped in _BY.findall(expression) for label in grouped.split(",")}
    return {name for name, _ in named if name not in known} | (labels - allowed)


def test_dashboard_and_rules_use_only_existing_metrics() -> None:
    known, asked = served(), expressions()
    assert len(asked) > 40
    assert {expression: found for expression in asked if (found := unknown_names(expression, known))} == {}


@pytest.mark.parametrize(
    "mistake",
    ["reeltalk_worker_restarts", 'reeltalk_kv_cache_usage_ratio{gpu="0"}', "sum by (model) (reeltalk_media_bytes)"],
)
def test_an_unknown_metric_or_label_is_found(mistake: str) -> None:
    assert unknown_names(mistake, served())


def test_every_alert_is_documented_and_tested() -> None:
    runbook = (ROOT / "docs" / "operations.md").read_text()
    tried = (PROMETHEUS / "rules_test.yml").read_text()
    alerts = [rule["alert"] for rule in rules()]
    assert len(alerts) > 5
    assert [alert for alert in alerts if f"| `{alert}` |" not in runbook or alert not in tried] == []


# -- with promtool


def promtool(*arguments: str | Path, folder: Path = PROMETHEUS) -> subprocess.CompletedProcess[str]:
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed; Debian's package `prometheus` has it")
    return subprocess.run([tool, *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_the_rules_are_valid_and_fire_when_they_should() -> None:
    for command in (("check", "rules", "rules.yml"), ("test", "rules", "rules_test.yml")):
        ran = promtool(*command)
        assert ran.returncode == 0, ran.stdout + ran.stderr


def test_a_rule_that_never_fires_fails_its_test(tmp_path: Path) -> None:
    shutil.copy(PROMETHEUS / "rules_test.yml", tmp_path)
    for threshold in ("> 0.02", "> 0.95", "== 0"):
        (tmp_path / "rules.yml").write_text((PROMETHEUS / "rules.yml").read_text().replace(threshold, "> 1e9"))
        assert promtool("test", "rules", "rules_test.yml", folder=tmp_path).returncode != 0


def test_prometheus_accepts_its_configuration(tmp_path: Path) -> None:
    shutil.copy(PROMETHEUS / "rules.yml", tmp_path)
    (tmp_path / "key").touch()
    config = (PROMETHEUS / "prometheus.yml").read_text().replace("/run/metrics.key", str(tmp_path / "key"))
    (tmp_path / "prometheus.yml").write_text(config)
    ran = promtool("check", "config", "prometheus.yml", folder=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
