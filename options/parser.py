"""The parser of the entry scripts, and what the words of their command lines may be."""

from __future__ import annotations

from options import arguments
from options.arguments import not_negative, pair, positive, share, share_below_1, whole
from parallel.launchers import launched_rank

__all__ = ["Parser", "not_negative", "pair", "positive", "share", "share_below_1", "whole"]


class Parser(arguments.Parser):
    """See `arguments.Parser`."""

    def may_speak(self) -> bool:
        """Whether this is rank 0, also of launchers that know no MPI."""
        return launched_rank() == 0
