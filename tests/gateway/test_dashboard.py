"""The Grafana dashboard asks for figures that gateways and nodes have, by labels that these have."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shoal.node.figures import pages

DASHBOARD = json.loads((Path(__file__).parents[2] / "docs/grafana.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
GIVEN_BY_PROMETHEUS = {"instance", "le"}
"""The label that it puts on every sample that it reads, and that of a histogram's buckets."""


def asked() -> Iterable[tuple[str, set[str]]]:
    """The figures that panels ask for, each with the labels by which."""
    for panel in PANELS:
        for target in panel["targets"]:
            expression = target["expr"]
            shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            grouped = {
                label.strip()
                for labels in re.findall(r"(?:by|ignoring) ?\(([^)]*)\)", expression)
                for label in labels.split(",")
            }
            for name, _, chosen in re.findall(r"\b(shoal_\w+)({([^}]*)})?", expression):
                yield name, shown | grouped | set(re.findall(r'(\w+)=~?"', chosen))
    for variable in DASHBOARD["templating"]["list"]:
        for name, label in re.findall(r"label_values\((\w+), (\w+)\)", variable.get("definition", "")):
            yield name, {label}


def has(registry: Any) -> dict[str, set[str]]:
    """The samples that a registry may show, each with its labels; of a histogram all three."""
    found: dict[str, set[str]] = defaultdict(set)
    for collector, names in registry._collector_to_names.items():
        for name in names:
            found[name] |= set(getattr(collector, "_labelnames", ()))
    for metric in registry.collect():
        for sample in metric.samples:
            found[sample.name] |= set(sample.labels)
    return found


async def test_every_figure_and_label_that_it_asks_for_exists(gateway) -> None:
    await gateway.chat(max_tokens=2)
    node = gateway.swarm.nodes[0]
    node.watch.energy.joules = node.watch.energy.joules or 1.0  # of which not every machine can tell
    pages(node)
    figures = [has(gateway.gateway.metrics.registry), has(node.server.load.metrics._registry)]
    for name, labels in asked():
        known = [found[name] for found in figures if name in found]
        assert known, f"nobody has {name}"
        assert any(labels <= found | GIVEN_BY_PROMETHEUS for found in known), (name, labels, known)


def test_it_shows_what_people_watch() -> None:
    shown = {name for name, _ in asked()}
    for name in ("time_to_first_token_seconds_bucket", "generation_tokens_total", "coverage", "kv_tokens"):
        assert f"shoal_{name}" in shown


def test_its_panels_have_words_and_lie_side_by_side() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in PANELS:
        assert panel["title"] and panel["description"], panel["title"]
    places: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in DASHBOARD["panels"]):
        taken = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not taken & places
        assert max(taken)[0] < 24
        places |= taken
