"""The health of a maker: one that was lost rests before it takes another job, and leaves the lost job to others."""

from __future__ import annotations

import time

_FIRST_REST_S, _MOST_REST_S = 1.0, 60.0  # the rest doubles with every loss in a row


class Health:
    """The state of a maker after its losses. Its crew guards it with a lock."""

    def __init__(self) -> None:
        self._losses = 0  # in a row
        self._rests_until = -float("inf")
        self._avoided_until: dict[str, float] = {}

    @property
    def is_well(self) -> bool:
        """Whether the maker was not lost the last time that it had a job."""
        return self._losses == 0

    @property
    def rest_s(self) -> float:
        """Seconds until the maker is to take a job; 0 if it may now."""
        return max(self._rests_until - time.monotonic(), 0.0)

    @property
    def avoided(self) -> frozenset[str]:
        """Ids of the jobs that the maker has lost lately, so that it takes others first."""
        now = time.monotonic()
        self._avoided_until = {id: until for id, until in self._avoided_until.items() if until > now}
        return frozenset(self._avoided_until)

    def lost(self, id: str) -> None:
        """Notes that the maker was lost with a job."""
        now = time.monotonic()
        self._rests_until = now + min(_FIRST_REST_S * 2.0 ** min(self._losses, 100), _MOST_REST_S)
        self._avoided_until[id] = now + _MOST_REST_S
        self._losses += 1

    def recovered(self) -> None:
        """Notes that the maker has done its work, whether or not there is a video."""
        self._losses = 0
