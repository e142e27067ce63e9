"""Leases: one owner at a time for a cache's place, or for one unit of its work.

A lease is a small file beside the cache's own, which no listing shows and no transfer sends. ``whole_place`` excludes
every other writer; leases of parts (a unit, the manifest) exclude each other by name and the whole place, so that the
workers of one plan share it. Readers need none.

In a folder the file is locked (``flock``) for the life of its holder: a killed holder's lease is free at once, a
stopped one keeps it. In a store, or where another machine's locks are not seen, the holder proves by a counter, its
heartbeat, that it lives: a counter that one observer has not seen move for EXPIRY seconds of its own clock is a dead
holder's, and the lease is taken over. So no clocks of two machines are compared. Whoever may have lost a lease in this
way finds out by ``check`` before it commits anything (fencing).
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

HEARTBEAT = 5.0  # seconds between two beats
EXPIRY = 60.0  # seconds without a beat after which a holder elsewhere is dead
POLL = 0.5  # seconds between two looks at a lease that is waited for
WHOLE = f"{LEASE_PREFIX}.json"
logger = logging.getLogger(__name__)
Wait = Callable[[Holder | None], bool]


class Held(ConflictError):
    """The lease ``name`` is another's; ``holder`` is that, if it has written itself down."""

    def __init__(self, name: str, where: str, holder: Holder | None) -> None:
        self.name, self.holder = name, holder
        who = "another process, which did not write down its name" if holder is None else str(holder)
        then = "wait for its end and run again" if holder is None else holder.advice
        super().__init__(f"{where}: in use by {who}; {then}")


class Lease:
    """A lease that this process has until ``release``; its heartbeat is a thread.

    ``storage`` is the place for writing: nothing is written there any more once the lease is lost.
    """

    def __init__(self, storage: Storage, name: str, holder: Holder, slot: Slot) -> None:
        self.storage = storage.fenced(self)
        self._name, self._where = name, storage.where(name)
        self._holder, self._slot = holder, slot
        self._confirmed, self._lost = time.monotonic(), False
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def check(self, certain: bool = True) -> None:
        """Raise ConflictError when the lease was lost: before anything is committed.

        Not ``certain``: no store is asked if the last heartbeat was not long ago.
        """
        with self._lock, asking(self.storage, self._name):
            if certain or time.monotonic() - self._confirmed > 2 * HEARTBEAT:
                self._lost = self._lost or not self._slot.is_mine(self._holder)
            lost = self._lost
        if lost:
            raise ConflictError(
                f"{self._where}: this process was away so long that another one has taken its place: nothing more was "
                "written; run again when that has ended"
            )

    def release(self) -> None:
        """End the lease; again is fine."""
        self._over.set()
        with self._lock:
            if not self._lost:
                with suppress(Exception):  # it then expires
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
        except Exception as error:  # a store that fails for a while
            logger.debug("%s: no heartbeat: %s", self._where, error)
            return
        if mine:
            self._holder, self._confirmed = holder, time.monotonic()
        self._lost = not mine


def never(_: Holder | None) -> bool:
    """Wait for nobody."""
    return False


@contextmanager
def whole_place(storage: Storage, command: str, wait: Wait = never, task: str = "") -> Iterator[Lease]:
    """Be the only writer at ``storage``.

    ``wait`` says for which holder to wait; ``task`` is what ``killed_task`` says should this process be
    killed. Raises ConflictError naming the holder for which one does not wait.
    """
    with only_place(storage, command, wait, task) as lease:
        end_dead_parts(storage, command, wait)
        for name in storage.names() if storage.is_local else []:
            if is_temporary(name):  # a killed writer's: nobody else is here
                lease.storage.delete(name)
        yield lease


@contextmanager
def only_place(storage: Storage, command: str, wait: Wait = never, task: str = "") -> Iterator[Lease]:
    """The same, but parts may still be somebody's: ``end_dead_parts`` tells, once one knows that one wants to write."""
    lease = acquire(storage, WHOLE, command, wait, task)
    try:
        yield lease
    finally:
        lease.release()


def end_dead_parts(storage: Storage, command: str, wait: Wait = never) -> None:
    """Remove what killed holders left of leases of parts; raises as ``whole_place`` when one lives."""
    for name in storage.lease_names():
        if name != WHOLE:
            me = this_process(command, secrets.token_hex(16))
            dead = _until_free(storage, name, wait)
            slot = _slot(storage, name)
            if slot.acquire(me, dead):
                slot.free(me)


def remove_dead_parts(storage: Storage) -> None:
    """The same of those that are known to be dead; others are left alone."""
    for name in storage.lease_names():
        slot = _slot(storage, name)
        seen = slot.look()
        me = this_process("", secrets.token_hex(16))
        if name != WHOLE and (seen is None or seen.state is State.ENDED) and slot.acquire(me, seen):
            slot.free(me)


@contextmanager
def part_of(storage: Storage, part: str, command: str, wait: Wait = never) -> Iterator[Lease]:
    """Be the only one at ``part``, while nobody has the whole place. Arguments and errors as of ``whole_place``."""
    lease = acquire_part(storage, part, command, wait)
    try:
        yield lease
    finally:
        lease.release()


def acquire_part(storage: Storage, part: str, command: str, wait: Wait = never) -> Lease:
    """The lease of ``part_of``, to be released by the caller."""
    while True:
        lease = acquire(storage, f"{LEASE_PREFIX}-{part}.json", command, wait)
        try:
            _until_free(storage, WHOLE, never)
            return lease
        except Held as held:
            lease.release()  # whoever has the whole place may wait for it
            if not wait(held.holder):
                raise
            _until_free(storage, WHOLE, wait)
        except BaseException:
            lease.release()
            raise


def killed_task(storage: Storage) -> str:
    """The task of a process of this machine that had the whole place and was killed; empty if there is none."""
    with asking(storage, WHOLE):
        if storage.is_local:
            data = storage.read(WHOLE, RECORD_BYTES) if storage.exists(WHOLE) else b""
        else:
            requests, path = storage.conditional(WHOLE)
            found = requests.read(path)
            data = b"" if found is None else found.data
    holder = parse_holder(data)
    return holder.task if holder is not None and holder.has_ended else ""


def acquire(storage: Storage, name: str, command: str, wait: Wait = never, task: str = "") -> Lease:
    """The lease ``name``, whoever has others. Raises ConflictError when one that lives has it and is not waited for."""
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
    """Return once nobody who lives has the lease ``name``: who had it, if one cannot know otherwise."""
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
    """Make one line of whatever a store's client raises."""
    try:
        yield
    except (UserError, NoLocks):
        raise
    except Exception as error:
        raise failure(error, f"{storage.where(name)}: cannot be asked who writes here") from error


class _Watch:
    """One observer of a lease that another may have."""

    def __init__(self, storage: Storage, name: str, slot: Slot, wait: Wait) -> None:
        self._name, self._where, self._slot, self._wait = name, storage.where(name), slot, wait
        self._poll = POLL / 10 if storage.is_local else POLL
        self._seen: Seen | None = None
        self._since = 0.0
        self._said = ""
        self.dead: Seen | None = None

    def look(self) -> bool:
        """Whether somebody who lives has it; after a pause then. Raises Held if one does not wait for that one.

        ``dead`` is who had it, if that one is dead.
        """
        found = self._slot.look()
        self.dead = None if found is None or found.state is not State.ENDED else found
        if found is None or self.dead is not None:
            return False
        now, before = time.monotonic(), self._seen
        if before is None or found.tag != before.tag:
            self._seen, self._since = found, now
        elif found.state is State.UNKNOWN and now - self._since > EXPIRY:
            logger.warning("%s: no heartbeat of %s for %.0f s; taking its place", self._where, found.holder, EXPIRY)
            self.dead = found
            return False
        lives = found.state is State.ALIVE or (before is not None and found.tag != before.tag)
        if lives and not self._wait(found.holder):
            raise Held(self._name, self._where, found.holder)
        if str(found.holder) != self._said:
            self._said = str(found.holder)
            logger.info("%s: waiting for %s", self._where, found.holder or "another process")
        time.sleep(self._poll)
        return True
