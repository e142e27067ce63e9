"""Where a lease is kept: the interface, and its implementation for object stores."""

from enum import Enum
from typing import NamedTuple, Protocol

from teacher_cache.shards.conditional import Conditional
from teacher_cache.shards.holder import Holder, parse_holder


class State(Enum):
    """What one observation tells about a lease's holder."""

    ALIVE = "alive"
    ENDED = "ended"
    UNKNOWN = "unknown"  # on another machine: only its heartbeat can tell


class Seen(NamedTuple):
    """An observed lease: its holder, if readable, and a tag that changes with every heartbeat."""

    holder: Holder | None
    state: State
    tag: str


class Slot(Protocol):
    """A place for one lease."""

    def acquire(self, holder: Holder, dead: Seen | None) -> bool:
        """Become the holder if there is none, or only the one observed as ``dead``."""

    def look(self) -> Seen | None:
        """Observe the lease; None if nobody holds it."""

    def beat(self, holder: Holder) -> bool:
        """Rewrite the holder's record; False if the lease was lost."""

    def is_mine(self, holder: Holder) -> bool:
        """Whether this holder still has the lease."""

    def free(self, holder: Holder) -> None:
        """End the lease, if this holder still has it."""


class StoreObject:
    """A lease as an object in a store."""

    def __init__(self, requests: Conditional, path: str) -> None:
        self._requests, self._path, self._tag = requests, path, ""

    def acquire(self, holder: Holder, dead: Seen | None) -> bool:
        """Create the object, or replace the dead holder's."""
        data = holder.to_bytes()
        if dead is None:
            tag = self._requests.create(self._path, data)
        else:
            tag = self._requests.replace(self._path, data, dead.tag)
        self._tag = tag or ""
        return tag is not None

    def look(self) -> Seen | None:
        """Read the object."""
        found = self._requests.read(self._path)
        if found is None:
            return None
        holder = parse_holder(found.data)
        if holder is None or not holder.is_here:
            return Seen(holder, State.UNKNOWN, found.tag)
        return Seen(holder, State.ENDED if holder.has_ended else State.ALIVE, found.tag)

    def beat(self, holder: Holder) -> bool:
        """Replace the object, if it is unchanged since this process wrote it."""
        tag = self._requests.replace(self._path, holder.to_bytes(), self._tag)
        self._tag = tag or self._tag
        return tag is not None

    def is_mine(self, holder: Holder) -> bool:
        """Read the object and compare tokens."""
        found = self._requests.read(self._path)
        here = None if found is None else parse_holder(found.data)
        return here is not None and here.token == holder.token

    def free(self, holder: Holder) -> None:
        """Delete the object, if it is unchanged since this process wrote it."""
        self._requests.delete(self._path, self._tag)
