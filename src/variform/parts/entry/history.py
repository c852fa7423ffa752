"""What branches have in common that read the inputs of all earlier steps."""

from __future__ import annotations

from variform.core.part import Facts
from variform.parts.kinds import Entry


class HistoryEntry(Entry):
    """Reads a history off the stream that its field `stream` names, and publishes it longer by its own input.

    A field `views` says how many inputs the branch gets.
    """

    @classmethod
    def views(cls, args: Facts) -> int:
        """As told."""
        return int(args["views"])

    @classmethod
    def publishes(cls, args: Facts) -> tuple[str, ...]:
        """The history, longer by one."""
        return (args.get("stream", "history"),)

    @classmethod
    def reads_streams(cls, args: Facts) -> frozenset[str]:
        """The history."""
        return frozenset({args.get("stream", "history")})
