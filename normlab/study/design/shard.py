"""Parts of a comparison for several machines: whole groups of columns, since those share a learning-rate grid."""

from dataclasses import dataclass

from normlab.errors import BadInput
from normlab.study.design.plan import Plan
from normlab.study.design.records import Configuration


@dataclass(frozen=True)
class Shard:
    """The `part`-th of `parts`, counted from 1.

    >>> str(Shard.parse("2/3")), Shard(2, 3).suffix
    ('2/3', '.2of3')
    """

    part: int
    parts: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read `i/n`.

        Raises:
            ValueError: If it is anything else, or i is not one of 1, ..., n.
        """
        part, parts = map(int, text.split("/"))
        if not 1 <= part <= parts:
            raise ValueError(f"Expected 1 <= i <= n in a shard `i/n`, got `{text}`.")
        return cls(part, parts)

    def __str__(self) -> str:
        """Write the shard as on the command line."""
        return f"{self.part}/{self.parts}"

    @property
    def suffix(self) -> str:
        """The suffix that distinguishes its folder from the folders of the other parts."""
        return f".{self.part}of{self.parts}"

    def configurations(self, plan: Plan) -> frozenset[Configuration]:
        """Select the configurations of this part.

        Groups go to the part with the fewest configurations so far, the largest group first.

        Raises:
            BadInput: If there are more parts than groups.
        """
        if self.parts > len(plan.groups):
            raise BadInput(
                f"Expected `--shard` to cut into at most {len(plan.groups)} parts (columns that share a learning-rate "
                f"grid stay together), got {self.parts}."
            )
        parts: list[list[Configuration]] = [[] for _ in range(self.parts)]
        for group in sorted(plan.groups, key=len, reverse=True):
            min(parts, key=len).extend(group)
        return frozenset(parts[self.part - 1])
