"""The metrics of several processes as one page for Prometheus: every number of each, under the name of the process."""

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

LABEL = "replica"


class Joined(Collector):
    """The families of several pages, whose samples have one label more."""

    def __init__(self, pages: Mapping[str, str]):
        self.pages = pages

    def collect(self) -> Iterable[Metric]:
        """Each family once, with the samples of all."""
        families: dict[str, Metric] = {}
        for replica, page in self.pages.items():
            for found in text_string_to_metric_families(page):
                family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
                for sample in found.samples:
                    family.add_sample(sample.name, sample.labels | {LABEL: replica}, sample.value)
        return families.values()


def joined_page(pages: Iterable[tuple[str, str]]) -> bytes:
    """The page of all, from the name and the page of each."""
    registry = CollectorRegistry()
    registry.register(Joined(dict(pages)))
    return generate_latest(registry)
