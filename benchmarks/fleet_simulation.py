"""A queue of 100,000 units and 1,000 workers on S3, simulated: makespan against ideal, requests and their price.

A discrete-event simulation of the workers of ``teacher-cache run --queue``. The order of units, the number of misses
before a listing and the pauses are those of ``teacher_cache.queue_policy``; the requests of each act (``ACTS``) are
those that a test counts on an S3 server, one after the other; whoever ends last reads each mark once more. Latencies
are log-normal; above S3's limits for a prefix a request is refused and retried with growing pauses. Heartbeats are
counted, and take their share of the limits.

Durations of units are log-normal, one in a hundred takes ten times as long; workers differ in speed; a worker knows a
unit's size, not how long it takes. The ideal is all work divided by all speed, after loading the model. With
pre-emption, workers die (half of them with a warning, in which they may finish the unit in hand) and others take their
place after a while.

``in_order``: the queue as it was before: units in order, the next one claimed when one begins, every held unit watched
until its holder's heart beats. It is simulated at a tenth of the size.
"""

import heapq
import random
import sys
from dataclasses import dataclass, field

import numpy as np

from benchmarks.support.results import Row, at_most, exit_status, write_results
from teacher_cache.queue_policy import LOOKS, MISSES, claim_classes, pause
from teacher_cache.shards.lease import EXPIRY, HEARTBEAT, POLL

UNITS, WORKERS = 100_000, 1_000
MEAN, SIGMA = 60.0, 0.5  # seconds a unit, and of its logarithm
LONG_SHARE, LONG = 0.01, 10.0
SPEED_SIGMA, SIZE_SIGMA = 0.05, 0.1
CALLS = 4  # engine calls a unit: the next one is claimed when the last begins
LOAD = 120.0  # seconds to load the model
LATENCY, LATENCY_SIGMA = 0.03, 0.5  # seconds, median, and of its logarithm
LIST_LATENCY = 0.06  # median, of a page of 1,000 names
GETS, PUTS = 5_500, 3_500  # a second, S3's limits for a prefix
PRICES = {"get": 0.4e-6, "put": 5e-6}  # dollars a request; a listing costs as a PUT, a DELETE nothing
FILES = 4  # of a committed unit: tokens, logits, draws, mark
DEATHS = 0.05  # an hour and worker
WARNING, REPLACED = 120.0, 300.0  # seconds
BAR = 1.05
# (GETs and HEADs, PUTs and listings) of an act, in order of time; DELETEs are free, and nothing waits for them
ACTS = {
    "is done": (1, 0),
    "claim": (2, 1),  # lease created, whole place looked at, mark looked for again
    "refused": (2, 1),  # read back, since an answer may have been lost, and looked at
    "look": (1, 0),
    "read": (2, 0),
    "commit": (4, 3),  # two tars, a look at the sizes of all three, at the lease, and the mark
    "beat": (0, 1),
}


@dataclass
class Fleet:
    """What happens to the units and the workers of one simulated run."""

    seed: int
    units: int
    workers: int
    preempted: bool = False
    in_order: bool = False
    gets: int = 0
    puts: int = 0
    refused: int = 0  # by S3's limits
    listings: int = 0
    lost: int = 0  # units in hand of the dead
    held_seconds: float = 0.0
    load: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.rng = random.Random(self.seed)
        seconds = np.exp(rng.normal(np.log(MEAN) - SIGMA**2 / 2, SIGMA, self.units))
        seconds[rng.random(self.units) < LONG_SHARE] *= LONG
        self.seconds = seconds
        self.sizes = np.maximum(1, 1000 * seconds * np.exp(rng.normal(0, SIZE_SIGMA, self.units))).astype(int)
        self.speeds = np.exp(rng.normal(0, SPEED_SIGMA, self.workers))
        self.latencies = np.exp(rng.normal(0, LATENCY_SIGMA, 1 << 16)).tolist()
        self.done = np.full(self.units, np.inf)  # when its mark is there
        self.holder = np.zeros(self.units, bool)  # whether it has one, dead or alive
        self.dead_since = np.full(self.units, np.inf)
        self.classes = [np.array(each) for each in claim_classes(self.sizes.tolist(), self.rng)]  # all shuffle them

    @property
    def ideal(self) -> float:
        """Seconds to load the model, and to do all work at the speed of all workers."""
        return LOAD + max(float(self.seconds.sum() / self.speeds.sum()), float(self.seconds.max()))

    def latency(self) -> float:
        """A request's latency, relative to the median."""
        return self.latencies[self.rng.getrandbits(16)]

    def ask(self, now: float, what: str, times: int = 1) -> float:
        """The time when an act's requests, made from ``now`` on, are answered."""
        gets, puts = ACTS[what]
        for number in range(times * (gets + puts)):
            kind = 0 if number < times * gets else 1
            now = self.request(now, kind) + LATENCY * self.latency()
        return now

    def request(self, now: float, kind: int) -> float:
        """Count a request; the time when it is let through."""
        delay, limit = 0.2, (GETS, PUTS)[kind] - self.workers / HEARTBEAT
        while True:
            counts = self.load.setdefault(int(now), [0, 0])
            if counts[kind] < limit:
                counts[kind] += 1
                self.gets, self.puts = self.gets + (kind == 0), self.puts + (kind == 1)
                return now
            self.refused += 1
            now += delay * self.rng.uniform(0.5, 1.5)
            delay = min(2 * delay, 10.0)

    def listing(self, now: float) -> float:
        """The time when a listing of the place, begun at ``now``, is there."""
        self.listings += 1
        done = int((self.done <= now).sum())
        for _ in range(-(-(self.units + (FILES - 1) * done) // 1000)):
            now = self.request(now, 1) + LIST_LATENCY * self.latency()
        return now

    def run(self) -> None:
        """Simulate until all units are committed."""
        self.events: list[tuple[float, int, Worker]] = []
        self.number = 0
        for n in range(self.workers):
            self.join(self.rng.uniform(0, 10), self.speeds[n])
        self.left = self.units
        while self.left:
            now, _, worker = heapq.heappop(self.events)
            worker.act(now)
        self.gets += self.units  # for the manifest
        beats = int(self.held_seconds / HEARTBEAT)
        self.gets, self.puts = self.gets + beats * ACTS["beat"][0], self.puts + beats * ACTS["beat"][1]

    def join(self, now: float, speed: float) -> None:
        """Start a worker: it reads the plan and lists the place twice."""
        end = self.rng.expovariate(DEATHS / 3600) + now if self.preempted else np.inf
        worker = Worker(self, speed, end)
        self.at(self.ask(self.listing(self.listing(now)), "read"), worker)

    def at(self, now: float, worker: "Worker") -> None:
        """Let a worker act at ``now``."""
        self.number += 1
        heapq.heappush(self.events, (now, self.number, worker))

    @property
    def makespan(self) -> float:
        """When the last mark is there, relative to the ideal."""
        return float(self.done.max()) / self.ideal

    def figures(self) -> dict[str, float]:
        """For the results file."""
        names = ("units", "workers", "gets", "puts", "refused", "listings", "lost", "ideal", "makespan", "dollars")
        return {name: getattr(self, name) for name in names}

    @property
    def dollars(self) -> float:
        """Price of all requests."""
        return self.gets * PRICES["get"] + self.puts * PRICES["put"]


class Worker:
    """One worker: it acts whenever one of its requests is answered, or a call of its engine ends."""

    def __init__(self, fleet: Fleet, speed: float, dies: float) -> None:
        self.fleet, self.speed, self.dies = fleet, speed, dies
        self.loaded = self.passed_over = False
        self.ends = 0.0  # when the unit in hand is scored
        self.contested: dict[int, float] = {}  # held units, and since when this worker has seen the same heartbeat
        self.waits = self.misses = self.place = self.class_number = 0
        self.sweep: list[int] = []
        self.held_in_sweep = 0
        self.free = fleet.classes
        self.shuffle()

    def shuffle(self) -> None:
        """Start at a random place of a class, and go through it with a random stride."""
        self.place = 0
        n = len(self.free[self.class_number]) if self.class_number < len(self.free) else 0
        self.start = self.fleet.rng.randrange(n) if n else 0
        self.stride = self.fleet.rng.randrange(1, n + 1) if n else 1
        while n and np.gcd(self.stride, n) != 1:
            self.stride = self.fleet.rng.randrange(1, n + 1)

    def next_unit(self) -> int | None:
        """The next one that seems free."""
        if self.fleet.in_order:
            return None if self.place >= self.fleet.units else self.place
        while self.class_number < len(self.free):
            units = self.free[self.class_number]
            if self.place < len(units):
                self.place += 1
                return int(units[(self.start + self.place * self.stride) % len(units)])
            self.next_class()
        return None

    def next_class(self) -> None:
        """Go on to smaller units."""
        self.class_number, self.misses = self.class_number + 1, 0
        self.shuffle()

    def act(self, now: float) -> None:
        """Do what comes next, if anything does."""
        after = self.done_at(now)
        if after is not None:
            self.fleet.at(after, self)

    def done_at(self, now: float) -> float | None:
        """Do what comes next; returns when that is over, None if this worker has ended."""
        if now > self.dies:
            self.fleet.join(self.dies + REPLACED, self.speed)
            return None
        if self.misses >= MISSES and self.class_number < len(self.free) and not self.fleet.in_order:
            self.passed_over = True
            self.next_class()
        if (unit := self.next_unit()) is not None:
            return self.attempt_in_order(now) if self.fleet.in_order else self.attempt(now, unit)
        if self.passed_over:
            return self.look(now)
        if now < self.ends:  # no unit is in hand when it waits for others
            return self.ends
        return self.wait(now) if self.contested else None

    def attempt(self, now: float, unit: int) -> float:
        """Claim a unit if it is free."""
        fleet, seen = self.fleet, self.contested.get(unit)
        if fleet.done[unit] <= now:
            self.misses += 1
            self.contested.pop(unit, None)
            return fleet.ask(now, "is done")
        expired = seen is not None and now - max(seen, fleet.dead_since[unit]) > EXPIRY
        if fleet.holder[unit] and not expired:
            self.misses += 1
            self.contested.setdefault(unit, now)
            if fleet.in_order:
                return self.watch(now)
            return fleet.ask(fleet.ask(now, "is done"), "refused" if seen is None else "look")
        self.contested.pop(unit, None)
        return self.claimed(now, unit)

    def claimed(self, now: float, unit: int) -> float:
        """Read the unit, score it once the one before is scored, and commit it; returns when to claim the next one."""
        fleet = self.fleet
        fleet.holder[unit], fleet.dead_since[unit] = True, np.inf
        self.misses, self.waits, self.sweep = 0, 0, []
        ready = fleet.ask(fleet.ask(fleet.ask(now, "is done"), "claim"), "read")
        if not self.loaded:
            self.loaded, ready = True, ready + LOAD
        begin = max(ready, self.ends)
        seconds = fleet.seconds[unit] / self.speed
        end = begin + seconds
        fleet.held_seconds += min(end, self.dies) - now
        if end > self.dies and (end > self.dies + WARNING or fleet.rng.random() < 0.5):
            fleet.lost += 1
            fleet.dead_since[unit] = max(self.dies, now)
            return self.dies + 1e-3
        fleet.done[unit], fleet.left, self.ends = fleet.ask(end, "commit"), fleet.left - 1, end
        return begin if fleet.in_order else end - seconds / CALLS

    def look(self, now: float) -> float:
        """List what is there, and keep what is free."""
        fleet, self.misses, self.passed_over = self.fleet, 0, False
        units = np.concatenate(self.free)
        left = units[fleet.done[units] > now]
        for unit in left[fleet.holder[left]].tolist():
            self.contested.setdefault(unit, now)
        self.contested = {unit: seen for unit, seen in self.contested.items() if fleet.done[unit] > now}
        free = [units[(fleet.done[units] > now) & ~fleet.holder[units]] for units in self.free]
        self.free, self.class_number = [units for units in free if len(units)], 0
        self.shuffle()
        return fleet.listing(now)

    def wait(self, now: float) -> float:
        """Look at one unit of others; pause after some that are still held."""
        if not self.sweep:
            self.sweep = self.fleet.rng.sample([*self.contested], len(self.contested))
            self.held_in_sweep = 0
        unit = self.sweep.pop()
        after = self.attempt(now, unit)
        self.held_in_sweep += unit in self.contested
        if self.held_in_sweep and (not self.sweep or (self.held_in_sweep == LOOKS and not self.fleet.in_order)):
            self.sweep = []
            after += POLL if self.fleet.in_order else pause(self.waits, self.fleet.rng)
            self.waits += 1
        return after

    def attempt_in_order(self, now: float) -> float:
        """The queue as it was: skip the units that are done, one request each, and watch each holder's heart."""
        fleet, unit = self.fleet, self.place
        while unit < min(fleet.units - 1, self.place + 50) and fleet.done[unit] <= now:
            unit += 1
        after = fleet.ask(now, "is done", unit - self.place) if unit > self.place else now
        self.place = unit + 1
        return self.attempt(after, unit)

    def watch(self, now: float) -> float:
        """Wait until a holder's heart has beaten."""
        watched = self.fleet.rng.uniform(0, HEARTBEAT)
        return self.fleet.ask(self.fleet.ask(now, "refused"), "look", int(watched / POLL) + 1) + watched


def main() -> int:
    """Run the benchmark; returns the exit status."""
    fleets = {
        "queue": Fleet(0, UNITS, WORKERS),
        "preempted": Fleet(0, UNITS, WORKERS, preempted=True),
        "small": Fleet(0, UNITS // 10, WORKERS // 10),
        "in order": Fleet(0, UNITS // 10, WORKERS // 10, in_order=True),
    }
    for fleet in fleets.values():
        fleet.run()
    queue, preempted = fleets["queue"], fleets["preempted"]
    rows = [
        at_most(f"{UNITS:,} units × {WORKERS:,} workers: makespan ÷ ideal", queue.makespan, "×", BAR),
        Row("… the ideal", queue.ideal / 60, "min"),
        *costs(queue),
        Row("… with pre-emption of 5 % of the workers an hour: makespan ÷ ideal", preempted.makespan, "×"),
        Row("… units lost in hand", preempted.lost),
        *costs(preempted),
        Row(f"{UNITS // 10:,} units × {WORKERS // 10:,} workers: makespan ÷ ideal", fleets["small"].makespan, "×"),
        *costs(fleets["small"]),
        Row("… in order, as it was: makespan ÷ ideal", fleets["in order"].makespan, "×"),
        *costs(fleets["in order"]),
    ]
    title = "A queue on S3, simulated: units of 60 s on average, one in a hundred ten times as long"
    write_results("fleet_simulation", title, rows, {name: fleet.figures() for name, fleet in fleets.items()})
    return exit_status(rows)


def costs(fleet: Fleet) -> list[Row]:
    """Requests and their price."""
    return [
        Row("… requests a unit", (fleet.gets + fleet.puts) / fleet.units),
        Row("… dollars a 1,000 units", 1000 * fleet.dollars / fleet.units, "$"),
        Row("… requests refused by the store's limits", fleet.refused),
    ]


if __name__ == "__main__":
    sys.exit(main())
