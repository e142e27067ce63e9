"""A fleet on Ray: places workers, replaces those that die, shows how far all of them are, and ends them.

Units are given out by their leases in the storage (``--queue``), so a fleet loses nothing with its driver, and workers
that were started elsewhere share its work. A worker that finds no place waits in Ray's queue: a node that joins gets
it, and Ray's autoscaler sees it as demand.
"""

import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import yaml

from schemas.errors import MachineError, StoreError, UserError
from teacher_cache.fleet.fleet_parts import PARTS, FleetConfig, Units
from teacher_cache.fleet.ray_worker import Ended, RayWorker
from teacher_cache.progress import Progress
from teacher_cache.stop_request import StopRequest

GET_RAY = "pip install 'offline-distillation[ray]'"
LIVES = 3  # of a place in the fleet that fail in a row, without a unit committed by anyone: then it is given up
PAUSE, LONGEST_PAUSE = 2.0, 120.0  # seconds before a failed worker is replaced: doubled for each failure in a row
ANSWER_WITHIN = 10.0  # seconds, the head of a cluster
TICK = 0.5  # seconds between looks at the workers
LOOK = 5.0  # seconds between looks at the commit marks
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FleetSettings:
    """What to start, and where."""

    part: str  # run, generate or curate
    workers: int
    address: str | None = None  # of a Ray cluster; None: this machine alone
    cpus: float = 1.0  # of a worker
    gpus: int = 0  # of a worker
    without_gpus: bool = False  # whether to do without them in a cluster that has none


@dataclass
class FleetSummary:
    """Results of a fleet, and the state of the place."""

    units: int = 0  # of the plan
    units_committed: int = 0  # all of them, by whoever
    units_committed_meanwhile: int = 0
    tokens_per_second: float = 0.0  # of the units that were committed meanwhile; or replies, or chunks
    seconds: float = 0.0  # with loading the engines
    workers_started: int = 0
    workers_lost: int = 0  # with their node, or killed
    workers_failed: int = 0  # that ended with an error
    complete: bool = False
    stopped_by: str | None = None  # name of the signal that ended the fleet before the last unit


@dataclass
class Place:
    """A place for one worker, and those that had it one after the other."""

    number: int
    actor: Any = None
    ended: Any = None  # reference to how its command ends
    node: Any = None  # reference to where it is; answers once Ray has placed the actor
    where: str = ""
    over: bool = False
    failures: int = 0  # in a row
    committed_before: int = 0  # units of all, when the worker was started
    not_before: float = 0.0
    said: Ended = field(default_factory=lambda: Ended(0, ""))


def run_fleet(config: FleetConfig, settings: FleetSettings) -> FleetSummary:
    """Run workers until every unit is committed. On SIGINT, SIGTERM or SIGHUP each finishes its unit.

    Raises UserError, also if no worker can do anything.
    """
    ray = _connected(settings.address)
    try:
        on_cpus = settings.without_gpus and not ray.cluster_resources().get("GPU")
        worker = ray.remote(RayWorker).options(
            num_cpus=settings.cpus,
            num_gpus=0 if on_cpus else settings.gpus,
            max_restarts=0,
            max_concurrency=3,  # run, and meanwhile stop
            scheduling_strategy="SPREAD",
        )
        text = yaml.safe_dump(config.model_dump(mode="json"))
        units = PARTS[settings.part].units(config)
        stop = StopRequest()
        with stop.listening("the units in hand"), redirect_stdout(sys.stderr):  # Ray prints what nodes say
            return Fleet(ray, lambda: worker.remote(os.getcwd()), text, settings, units, stop).run()
    finally:
        ray.shutdown()


def _connected(address: str | None) -> Any:
    """Ray, connected to the cluster. Raises UserError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise UserError(f"ray: not installed; run: {GET_RAY}") from None
    try:
        host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
        if colon and port.isdecimal():  # Ray itself tries for minutes
            socket.create_connection((host, int(port)), timeout=ANSWER_WITHIN).close()
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.WARNING)
    except Exception as error:  # many kinds, none documented
        raise StoreError(
            f"--address {address}: cannot connect to a Ray cluster: {error}; start one with `ray start --head`, or "
            "leave --address out to use this machine alone"
        ) from None
    return ray


class Fleet:
    """The workers of a job."""

    def __init__(
        self,
        ray: Any,
        new_actor: Callable[[], Any],
        config: str,
        settings: FleetSettings,
        units: Units,
        stop: StopRequest,
    ) -> None:
        self._ray, self._new_actor, self._config, self._settings = ray, new_actor, config, settings
        self._units, self._stop = units, stop
        self._places = [Place(number) for number in range(settings.workers)]
        self._found = FleetSummary()
        self._last_look = 0.0

    def run(self) -> FleetSummary:
        """Start workers, and replace them, until all units are committed or a signal arrives. Raises UserError."""
        started = time.monotonic()
        self._units.look()
        committed_before, first = len(self._units.done), self._units.finished
        part = PARTS[self._settings.part]
        with Progress(0, "fleet", part.things, part.rate) as progress:
            while not all(place.over for place in self._places) and not self._stop:
                self._take_back()
                self._start_workers()
                self._look_at_workers()
                self._look_at_units(progress, first)
            if self._stop:
                self._end_workers()
        self._units.look()
        seconds = time.monotonic() - started
        self._found.units, self._found.units_committed = len(self._units.sizes), len(self._units.done)
        self._found.units_committed_meanwhile = len(self._units.done) - committed_before
        self._found.seconds, self._found.tokens_per_second = seconds, (self._units.finished - first) / seconds
        self._found.complete, self._found.stopped_by = self._units.complete, self._stop.signal_name
        if not self._found.complete and not self._stop:
            self._raise_why()
        return self._found

    def _take_back(self) -> None:
        """Once a worker has ended because all is done, take back those that Ray has not placed yet."""
        if any(place.over and place.said.status == 0 for place in self._places):
            for place in self._places:
                if not place.where:
                    self._give_up(place)

    def _start_workers(self) -> None:
        now = time.monotonic()
        for place in self._places:
            if place.over or place.actor is not None or now < place.not_before:
                continue
            place.actor, place.where = self._new_actor(), ""
            place.node = place.actor.node.remote()
            place.ended = place.actor.run.remote(self._settings.part, self._config)
            place.committed_before = len(self._units.done)

    def _look_at_workers(self) -> None:
        waited_for = [place.node for place in self._places if place.actor is not None and not place.where]
        waited_for += [place.ended for place in self._places if place.actor is not None]
        if not waited_for:
            time.sleep(TICK)
            return
        ready, _ = self._ray.wait(waited_for, num_returns=len(waited_for), timeout=TICK)
        for place in self._places:
            if place.actor is None:
                continue
            if place.node in ready and not place.where:
                self._placed(place)
            if place.ended in ready:
                self._ended(place)

    def _placed(self, place: Place) -> None:
        try:
            place.where = self._ray.get(place.node)
        except self._ray.exceptions.RayError:
            return  # so has its run, which says why
        self._found.workers_started += 1
        logger.info("worker %d is on %s", place.number, place.where)

    def _ended(self, place: Place) -> None:
        """Note how a worker ended, and when its place is to be filled again."""
        try:
            place.said = self._ray.get(place.ended)
        except self._ray.exceptions.RayError as error:
            self._lost(place, str(error))
            return
        where = place.where
        self._release(place)
        if place.said.status == 0 or self._stop:
            place.over = True
            return
        self._found.workers_failed += 1
        place.failures = place.failures + 1 if len(self._units.done) == place.committed_before else 1
        place.over = place.failures >= LIVES
        pause = min(PAUSE * 2 ** (place.failures - 1), LONGEST_PAUSE)
        place.not_before = time.monotonic() + pause
        then = "given up" if place.over else f"another one starts in {pause:.0f} s"
        logger.warning("worker %d on %s ended with %s; %s", place.number, where, _words(place.said), then)

    def _lost(self, place: Place, why: str) -> None:
        """Free the place of a worker that died, so that another one gets it: what it had committed is there."""
        self._found.workers_lost += 1
        place.actor, place.where = None, ""
        place.not_before = time.monotonic() + PAUSE
        logger.warning("worker %d was lost (%s); another one takes its place", place.number, why.strip().split("\n")[0])

    def _release(self, place: Place) -> None:
        if place.actor is not None:
            self._ray.kill(place.actor)
        place.actor, place.where = None, ""

    def _give_up(self, place: Place) -> None:
        self._release(place)
        place.over = True

    def _look_at_units(self, progress: Progress, first: int) -> None:
        if time.monotonic() - self._last_look < LOOK:
            return
        self._units.look()
        self._last_look = time.monotonic()
        at_work = sum(bool(place.where) for place in self._places)
        units = f"{len(self._units.done):,} of {len(self._units.sizes):,} units" if self._units.sizes else "planning"
        progress.of_fleet(self._units.finished - first, self._units.total - first, f"{units} · {at_work} workers")

    def _end_workers(self) -> None:
        """Have each worker finish its unit, and wait for it."""
        for place in self._places:
            if place.actor is not None and place.where:
                place.actor.stop.remote()
            else:
                self._give_up(place)
        while not all(place.actor is None for place in self._places):
            self._look_at_workers()

    def _raise_why(self) -> None:
        failed = [place for place in self._places if place.said.status != 0]
        if failed:
            error = UserError(
                f"{len(failed)} workers failed {LIVES} times in a row without committing a unit, the last one with "
                f"{_words(failed[-1].said)}; `ray logs` has all that they said"
            )
            error.exit_code = max(failed[-1].said.status, UserError.exit_code)
            raise error
        left = len(self._units.sizes) - len(self._units.done)
        raise MachineError(f"the workers have ended, but {left} units are not committed; run again")


def _words(ended: Ended) -> str:
    status = f"status {ended.status}" if ended.status >= 0 else f"signal {-ended.status}"
    return f"{status}{': ' if ended.said else ''}{ended.said.removeprefix('error: ')}"
