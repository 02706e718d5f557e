"""The plan of a comparison while records arrive: a record changes the plan of its own group alone."""

from collections.abc import Iterable, Mapping, Sequence

from normlab.study.design.plan import ConfigurationPlan, Plan
from normlab.study.design.records import Configuration, Record, Run

__all__ = ["Ongoing"]


class Ongoing:
    """The planned and the missing runs of every configuration.

    Attributes:
        plan: The plan of the comparison.
        known: The records so far.
    """

    def __init__(self, plan: Plan, records: Iterable[Record]) -> None:
        """Plan all runs, as far as the records determine them."""
        self.plan = plan
        self.known: dict[Run, Record] = {record.run: record for record in records}
        self._group = {configuration: number for number, group in enumerate(plan.groups) for configuration in group}
        self._planned: dict[Configuration, ConfigurationPlan] = {}
        self._missing: dict[Configuration, list[Run]] = {}
        self._stale = set(range(len(plan.groups)))

    def add(self, record: Record) -> None:
        """Add a record."""
        self.known[record.run] = record
        self._stale.add(self._group[record.run.configuration])

    @property
    def planned(self) -> Mapping[Configuration, ConfigurationPlan]:
        """The plan of every configuration, group by group."""
        self._update()
        return self._planned

    def missing(self, configuration: Configuration) -> Sequence[Run]:
        """List the planned runs of a configuration that have no record."""
        self._update()
        return self._missing[configuration]

    @property
    def relevant(self) -> list[Record]:
        """The records of planned runs, without those of other grids, seeds or norms."""
        return [self.known[run] for of in self.planned.values() for run in of.runs if run in self.known]

    def group(self, configuration: Configuration) -> int:
        """Return the number of the group of a configuration."""
        return self._group[configuration]

    def _update(self) -> None:
        """Plan the groups anew that have new records."""
        for number in sorted(self._stale):
            planned = self.plan.of_group(self.plan.groups[number], self.known)
            self._planned |= planned
            self._missing |= {
                configuration: [run for run in of.runs if run not in self.known]
                for configuration, of in planned.items()
            }
        self._stale.clear()
