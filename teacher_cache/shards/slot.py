"""Where a lease is kept: what the kinds of places have in common."""

from enum import Enum
from typing import NamedTuple, Protocol

from teacher_cache.shards.conditional import Conditional
from teacher_cache.shards.holder import Holder, parse_holder


class State(Enum):
    """What one look tells about a lease's holder."""

    ALIVE = "alive"
    ENDED = "ended"
    UNKNOWN = "unknown"  # on another machine: its heartbeat has to be watched


class Seen(NamedTuple):
    """A lease that somebody has or had: who, if that can be read, and a tag that changes with every heartbeat."""

    holder: Holder | None
    state: State
    tag: str


class Slot(Protocol):
    """A place for one lease."""

    def acquire(self, holder: Holder, dead: Seen | None) -> bool:
        """Become the holder if there is none, or only one that was seen to be ``dead``."""

    def look(self) -> Seen | None:
        """Who has it; None: nobody."""

    def beat(self, holder: Holder) -> bool:
        """Write the holder's record anew; False when the lease is another's by now."""

    def is_mine(self, holder: Holder) -> bool:
        """Whether the lease is still this holder's."""

    def free(self, holder: Holder) -> None:
        """End the lease, if it is still this holder's."""


class StoreObject:
    """A lease as an object of a store."""

    def __init__(self, requests: Conditional, path: str) -> None:
        self._requests, self._path, self._tag = requests, path, ""

    def acquire(self, holder: Holder, dead: Seen | None) -> bool:
        """Create the object, or replace the one seen."""
        data = holder.to_bytes()
        if dead is None:
            tag = self._requests.create(self._path, data)
        else:
            tag = self._requests.replace(self._path, data, dead.tag)
        self._tag = tag or ""
        return tag is not None

    def look(self) -> Seen | None:
        """Read it."""
        found = self._requests.read(self._path)
        if found is None:
            return None
        holder = parse_holder(found.data)
        if holder is None or not holder.is_here:
            return Seen(holder, State.UNKNOWN, found.tag)
        return Seen(holder, State.ENDED if holder.has_ended else State.ALIVE, found.tag)

    def beat(self, holder: Holder) -> bool:
        """Replace it, if it is as this process wrote it last."""
        tag = self._requests.replace(self._path, holder.to_bytes(), self._tag)
        self._tag = tag or self._tag
        return tag is not None

    def is_mine(self, holder: Holder) -> bool:
        """Read whose it is."""
        found = self._requests.read(self._path)
        here = None if found is None else parse_holder(found.data)
        return here is not None and here.token == holder.token

    def free(self, holder: Holder) -> None:
        """Delete it, if it is as this process wrote it last."""
        self._requests.delete(self._path, self._tag)
