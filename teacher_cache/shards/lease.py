"""Leases: exclusive ownership of a cache's place, or of one unit of its work.

A lease is a small file next to the cache's own files; listings and transfers skip it. ``whole_place`` excludes every
other writer. Leases on parts (a unit, the manifest) exclude the same part and the whole place, so that the workers of
one plan can share it. Readers need none.

In a folder, the file is locked (``flock``) for the lifetime of its holder: the lease of a killed process is free at
once, a stopped process keeps its lease. In a store, or where another machine's locks are invisible, the holder
increments a counter as its heartbeat; an observer that sees no change for EXPIRY seconds of its own clock considers
the holder dead and takes over. Clocks of different machines are never compared. A holder that may have lost its lease
this way finds out through ``check`` before it commits anything (fencing).
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from schemas.errors import ConflictError, UserError
from schemas.failures import failure
from teacher_cache.shards.holder import RECORD_BYTES, Holder, parse_holder, this_process
from teacher_cache.shards.locked_file import LockedFile, NoLocks
from teacher_cache.shards.slot import Seen, Slot, State, StoreObject
from teacher_cache.shards.storage import LEASE_PREFIX, Storage, is_temporary

HEARTBEAT = 5.0  # seconds between beats
EXPIRY = 60.0  # seconds without a beat after which a remote holder is considered dead
POLL = 0.5  # seconds between polls of a lease that is waited for
WHOLE = f"{LEASE_PREFIX}.json"
logger = logging.getLogger(__name__)
Wait = Callable[[Holder | None], bool]


class Held(ConflictError):
    """The lease ``name`` belongs to another process; ``holder`` is its record, if readable."""

    def __init__(self, name: str, where: str, holder: Holder | None) -> None:
        self.name, self.holder = name, holder
        who = "another process (unknown: its lease has no record)" if holder is None else str(holder)
        then = "wait for its end, then run again" if holder is None else holder.advice
        super().__init__(f"{where}: in use by {who}; {then}")


class Lease:
    """A lease that this process holds until ``release``; a thread sends its heartbeat.

    ``storage`` is fenced: it stops writing once the lease is lost.
    """

    def __init__(self, storage: Storage, name: str, holder: Holder, slot: Slot) -> None:
        self.storage = storage.fenced(self)
        self._name, self._where = name, storage.where(name)
        self._holder, self._slot = holder, slot
        self._confirmed, self._lost = time.monotonic(), False
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    @property
    def holder(self) -> Holder:
        """This process's record, for ``LentLease``."""
        return self._holder

    def check(self, certain: bool = True) -> None:
        """Raise ConflictError if the lease was lost; call it before committing anything.

        If not ``certain``, skip the store request when the last heartbeat was recent.
        """
        with self._lock, asking(self.storage, self._name):
            if certain or time.monotonic() - self._confirmed > 2 * HEARTBEAT:
                self._lost = self._lost or not self._slot.is_mine(self._holder)
            lost = self._lost
        if lost:
            raise _lost(self._where)

    def release(self) -> None:
        """End the lease. Idempotent."""
        self._over.set()
        with self._lock:
            if not self._lost:
                with suppress(Exception):  # then it expires
                    self._slot.free(self._holder)
            self._lost = True

    def _keep(self) -> None:
        while not self._over.wait(HEARTBEAT):
            with self._lock:
                if not self._lost:
                    self._beat()

    def _beat(self) -> None:
        holder = self._holder.model_copy(update={"beat": self._holder.beat + 1})
        try:
            mine = self._slot.beat(holder)
        except Exception as error:  # the store fails temporarily
            logger.debug("%s: no heartbeat: %s", self._where, error)
            return
        if mine:
            self._holder, self._confirmed = holder, time.monotonic()
        self._lost = not mine


class LentLease:
    """The lease of another process on a whole place in a store, under which this process writes, too."""

    def __init__(self, storage: Storage, holder: Holder) -> None:
        self._storage, self._holder, self._slot = storage, holder, _slot(storage, WHOLE)
        self._confirmed: float | None = None

    def check(self, certain: bool = True) -> None:
        """As ``Lease.check``."""
        now = time.monotonic()
        if not certain and self._confirmed is not None and now - self._confirmed < 2 * HEARTBEAT:
            return
        with asking(self._storage, WHOLE):
            mine = self._slot.is_mine(self._holder)
        if not mine:
            raise _lost(self._storage.where(WHOLE))
        self._confirmed = now


def _lost(where: str) -> ConflictError:
    return ConflictError(
        f"{where}: this process sent no heartbeat for so long that another one took over; it stopped "
        "writing; run again once the other one has ended"
    )


def never(_: Holder | None) -> bool:
    """Wait policy: wait for nobody."""
    return False


@contextmanager
def whole_place(storage: Storage, command: str, wait: Wait = never, task: str = "") -> Iterator[Lease]:
    """Hold the lease on the whole place: no other writer.

    ``wait(holder)``: whether to wait for this holder. ``task``: what ``killed_task`` returns if this process is
    killed. Raises ConflictError naming a live holder that is not waited for.
    """
    with only_place(storage, command, wait, task) as lease:
        end_dead_parts(storage, command, wait)
        for name in storage.names() if storage.is_local else []:
            if is_temporary(name):  # a killed writer's: there is no other writer now
                lease.storage.delete(name)
        yield lease


@contextmanager
def only_place(storage: Storage, command: str, wait: Wait = never, task: str = "") -> Iterator[Lease]:
    """The same without checking leases on parts; call ``end_dead_parts`` before writing."""
    lease = acquire(storage, WHOLE, command, wait, task)
    try:
        yield lease
    finally:
        lease.release()


def end_dead_parts(storage: Storage, command: str, wait: Wait = never) -> None:
    """Remove part leases of killed holders; raises the same as ``whole_place`` if a holder lives."""
    for name in storage.lease_names():
        if name != WHOLE:
            me = this_process(command, secrets.token_hex(16))
            dead = _until_free(storage, name, wait)
            slot = _slot(storage, name)
            if slot.acquire(me, dead):
                slot.free(me)


def remove_dead_parts(storage: Storage) -> None:
    """Remove only part leases whose holders are known to be dead."""
    for name in storage.lease_names():
        slot = _slot(storage, name)
        seen = slot.look()
        me = this_process("", secrets.token_hex(16))
        if name != WHOLE and (seen is None or seen.state is State.ENDED) and slot.acquire(me, seen):
            slot.free(me)


@contextmanager
def part_lease(storage: Storage, part: str, command: str, wait: Wait = never) -> Iterator[Lease]:
    """Hold the lease on ``part``, which excludes one on the whole place. Arguments and errors as ``whole_place``."""
    lease = acquire_part(storage, part, command, wait)
    try:
        yield lease
    finally:
        lease.release()


def acquire_part(storage: Storage, part: str, command: str, wait: Wait = never) -> Lease:
    """The lease of ``part_lease``; the caller releases it."""
    while True:
        lease = acquire(storage, part_name(part), command, wait)
        if _excludes_the_whole(storage, lease, wait):
            return lease


def part_name(part: str) -> str:
    """File name of the lease on a part."""
    return f"{LEASE_PREFIX}-{part}.json"


def _excludes_the_whole(storage: Storage, lease: Lease, wait: Wait) -> bool:
    """Whether nobody holds the whole place beside this lease on a part; if somebody does, release it and wait."""
    try:
        _until_free(storage, WHOLE, never)
        return True
    except Held as held:
        lease.release()  # the holder of the whole place may be waiting for this part
        if not wait(held.holder):
            raise
        _until_free(storage, WHOLE, wait)
        return False
    except BaseException:
        lease.release()
        raise


class PartAttempts:
    """Attempts to acquire the lease on ``part`` that do not wait for its holder.

    The holder counts as dead once two attempts, more than EXPIRY seconds apart, have found the same heartbeat.
    """

    def __init__(self, storage: Storage, part: str, command: str, wait: Wait = never) -> None:
        """``wait``: for which holders of the whole place to wait."""
        self._storage, self._part, self._command, self._wait = storage, part, command, wait
        self._watch: _Watch | None = None

    def attempt(self) -> Lease | None:
        """The lease; None if a process holds it that is not known to be dead. Raises as ``acquire_part``."""
        name = part_name(self._part)
        try:
            with asking(self._storage, name):
                return self._attempt(name)
        except NoLocks:
            self._storage.has_locks = False
            return self.attempt()

    def _attempt(self, name: str) -> Lease | None:
        slot, me = _slot(self._storage, name), this_process(self._command, secrets.token_hex(16))
        if self._watch is not None and self._watch.observe() is not None and self._watch.dead is None:
            return None
        if not slot.acquire(me, None if self._watch is None else self._watch.dead):
            if self._watch is None:
                self._watch = _Watch(self._storage, name, _slot(self._storage, name), never)
                self._watch.observe()
            return None
        lease = Lease(self._storage, name, me, slot)
        return lease if _excludes_the_whole(self._storage, lease, self._wait) else None


def killed_task(storage: Storage) -> str:
    """The task of a killed process of this machine that held the whole place; empty if there is none."""
    with asking(storage, WHOLE):
        if storage.is_local:
            data = storage.read_if_there(WHOLE, RECORD_BYTES)
        else:
            requests, path = storage.conditional(WHOLE)
            found = requests.read(path)
            data = b"" if found is None else found.data
    holder = parse_holder(data)
    return holder.task if holder is not None and holder.has_ended else ""


def acquire(storage: Storage, name: str, command: str, wait: Wait = never, task: str = "") -> Lease:
    """Acquire the lease ``name`` alone. Raises ConflictError if a live holder has it and is not waited for."""
    me = this_process(command, secrets.token_hex(16), task)
    slot = _slot(storage, name)
    watch = _Watch(storage, name, slot, wait)
    try:
        with asking(storage, name):
            while not slot.acquire(me, watch.dead):
                watch.look()
    except NoLocks:
        storage.has_locks = False
        return acquire(storage, name, command, wait, task)
    return Lease(storage, name, me, slot)


def _until_free(storage: Storage, name: str, wait: Wait) -> Seen | None:
    """Wait until no live process holds the lease ``name``; returns the dead holder's lease, if there is one."""
    watch = _Watch(storage, name, _slot(storage, name), wait)
    try:
        with asking(storage, name):
            while watch.look():
                pass
    except NoLocks:
        storage.has_locks = False
        return _until_free(storage, name, wait)
    return watch.dead


def _slot(storage: Storage, name: str) -> Slot:
    if storage.is_local and storage.has_locks:
        return LockedFile(storage.local_path(name))
    return StoreObject(*storage.conditional(name))


@contextmanager
def asking(storage: Storage, name: str) -> Iterator[None]:
    """Convert whatever a store's client raises to a one-line UserError."""
    try:
        yield
    except (UserError, NoLocks):
        raise
    except Exception as error:
        raise failure(error, f"{storage.where(name)}: cannot find out who is writing here") from error


class _Watch:
    """Observes a lease that another process may hold."""

    def __init__(self, storage: Storage, name: str, slot: Slot, wait: Wait) -> None:
        self._name, self._where, self._slot, self._wait = name, storage.where(name), slot, wait
        self._poll = POLL / 10 if storage.is_local else POLL
        self._seen: Seen | None = None
        self._since = 0.0
        self._said = ""
        self.dead: Seen | None = None

    def look(self) -> bool:
        """Whether a live process holds it, returned after a pause. Raises Held if that is not waited for.

        Sets ``dead`` to the lease if its holder is dead.
        """
        before, found = self._seen, self.observe()
        if found is None or self.dead is not None:
            return False
        lives = found.state is State.ALIVE or (before is not None and found.tag != before.tag)
        if lives and not self._wait(found.holder):
            raise Held(self._name, self._where, found.holder)
        if str(found.holder) != self._said:
            self._said = str(found.holder)
            logger.info("%s: waiting for %s", self._where, found.holder or "another process")
        time.sleep(self._poll)
        return True

    def observe(self) -> Seen | None:
        """The lease as it is now, without a pause; None if nobody holds it. Sets ``dead`` as ``look`` does."""
        found = self._slot.look()
        self.dead = None if found is None or found.state is not State.ENDED else found
        if found is None or self.dead is not None:
            return found
        now, before = time.monotonic(), self._seen
        if before is None or found.tag != before.tag:
            self._seen, self._since = found, now
        elif found.state is State.UNKNOWN and now - self._since > EXPIRY:
            logger.warning("%s: no heartbeat from %s for %.0f s; taking over", self._where, found.holder, EXPIRY)
            self.dead = found
        return found
