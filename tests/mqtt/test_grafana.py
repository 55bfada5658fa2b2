"""The dashboard for Grafana names topics and fields that agents really publish. Grafana itself is not run here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from active_restore.mqtt.payloads import schema
from active_restore.mqtt.topics import KINDS

DASHBOARD: dict[str, Any] = json.loads((Path(__file__).parents[2] / "dashboard/grafana.json").read_text())
FIELDS: dict[str, set[str]] = {kind: set(schema(kind)["$defs"][kind.capitalize()]["properties"]) for kind in KINDS}


def kind_of(panel: dict[str, Any]) -> str:
    """Of what a panel shows."""
    (target,) = panel["targets"]
    assert target["topic"].startswith("${prefix}/${machine}/")
    kind: str = target["topic"].rpartition("/")[2]
    return kind


@pytest.mark.parametrize("panel", DASHBOARD["panels"], ids=lambda panel: panel["title"])
def test_fields_exist(panel: dict[str, Any]) -> None:
    known = FIELDS[kind_of(panel)] | {"Time"}
    for step in panel["transformations"]:
        options = step["options"]
        match step["id"]:
            case "calculateField":
                assert options["binary"]["left"]["matcher"]["options"] in known
                known.add(options["alias"])
            case "groupBy" | "partitionByValues":
                assert set(options["fields"]) <= known
            case "filterFieldsByName":
                assert set(options["include"]["names"]) <= known
            case "organize":
                assert {name.removesuffix(" (lastNotNull)") for name in options["renameByName"]} <= known
            case other:
                raise AssertionError(f"{other} is not checked here")
    for override in panel["fieldConfig"]["overrides"]:
        assert override["matcher"]["options"] in known


def test_it_fits_together() -> None:
    panels = DASHBOARD["panels"]
    assert {kind_of(panel) for panel in panels} == set(KINDS)
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} == {"source", "prefix", "machine"}
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert panel["datasource"] == {"type": "grafana-mqtt-datasource", "uid": "${source}"}
