#!/usr/bin/env python3
"""What the ranks of an overlapped step cost each other: replays it from its trace in virtual time, first as it was
and then as if experts, and then as if every stage, took the mean of all ranks.

usage: tools/overlap_replay.py TRACE [STEP...]      (default: every overlapped step of the largest size)

TRACE comes from `duet bench overlap ... --trace TRACE`. Both lanes of a rank keep the order of the trace, the compute
lane waits for the events that the trace has, and a collective starts when all ranks have come to it and takes what its
fastest rank took."""
import bisect
import collections
import json
import sys

COMPUTE, COMM = 0, 1


def load(path):
    with open(path) as f:
        events = json.load(f)
    events = events["traceEvents"] if isinstance(events, dict) else events
    steps = collections.defaultdict(list)
    for e in events:
        if e["ph"] == "X" and "schedule" in e["args"]:
            steps[e["args"]["step"]].append(e)
    sent = {(e["pid"], e["id"]): e for e in events if e["ph"] == "s"}
    arrows = [(sent[e["pid"], e["id"]], e) for e in events if e["ph"] == "f"]
    return steps, arrows


class Step:
    """stages[rank][key] = (lane, ms); order[rank][lane] = keys; after[key] = keys whose event it waits for."""

    def __init__(self, stages, arrows):
        self.ranks = sorted({e["pid"] for e in stages})
        self.ms = max(e["ts"] + e["dur"] for e in stages) - min(e["ts"] for e in stages)
        self.ms /= 1e3
        self.stages, self.order, self.after = {}, {}, collections.defaultdict(set)
        ends, begins = collections.defaultdict(list), collections.defaultdict(list)
        for rank in self.ranks:
            seen = collections.Counter()
            self.stages[rank], self.order[rank] = {}, ([], [])
            for e in sorted((e for e in stages if e["pid"] == rank), key=lambda e: e["ts"]):
                name = (e["name"], e["args"]["layer"], e["args"]["micro_batch"])
                key = name + (seen[name],)  # a layer may have two gathers
                seen[name] += 1
                self.stages[rank][key] = (e["tid"], e["dur"] / 1e3)
                self.order[rank][e["tid"]].append(key)
                if rank == self.ranks[0]:  # events are the same on all
                    begins[e["tid"]].append((e["ts"], key))
                    ends[e["tid"]].append((e["ts"] + e["dur"], key))
        first, last = begins[COMPUTE][0][0], max(ends[COMPUTE][-1][0], ends[COMM][-1][0])
        for begin, end in arrows:
            if end["pid"] == self.ranks[0] and first <= begin["ts"] and end["ts"] <= last + 1:
                self.after[self.nearest(begins[end["tid"]], end["ts"])].add(
                    self.nearest(ends[begin["tid"]], begin["ts"]))

    @staticmethod
    def nearest(places, ts):
        at = bisect.bisect(places, (ts,))
        return min(places[max(at - 1, 0):at + 1], key=lambda place: abs(place[0] - ts))[1]

    def costs(self, alike=lambda name: False):
        """[rank][key] in ms; collectives by the fastest rank, stages of which alike(name) by the mean."""
        result = {rank: {} for rank in self.ranks}
        for key, (lane, _) in self.stages[self.ranks[0]].items():
            of = [self.stages[rank][key][1] for rank in self.ranks]
            for rank, ms in zip(self.ranks, of):
                result[rank][key] = min(of) if lane == COMM else sum(of) / len(of) if alike(key[0]) else ms
        return result

    def replay(self, costs):
        done = {rank: {} for rank in self.ranks}
        free = {(rank, lane): 0.0 for rank in self.ranks for lane in (COMPUTE, COMM)}
        at = collections.Counter()

        def ready(rank, key):
            return all(other in done[rank] for other in self.after[key])

        def start(rank, lane, key):
            return max([free[rank, lane]] + [done[rank][other] for other in self.after[key]])

        moved = True
        while moved:
            moved = False
            for rank in self.ranks:
                keys = self.order[rank][COMPUTE]
                while at[rank] < len(keys) and ready(rank, keys[at[rank]]):
                    key = keys[at[rank]]
                    done[rank][key] = free[rank, COMPUTE] = start(rank, COMPUTE, key) + costs[rank][key]
                    at[rank] += 1
                    moved = True
            keys = self.order[self.ranks[0]][COMM]
            while at["comm"] < len(keys) and all(ready(rank, keys[at["comm"]]) for rank in self.ranks):
                key = keys[at["comm"]]
                begin = max(start(rank, COMM, key) for rank in self.ranks)
                for rank in self.ranks:
                    done[rank][key] = free[rank, COMM] = begin + costs[rank][key]
                at["comm"] += 1
                moved = True
        stuck = [k for k in self.order[self.ranks[0]][COMM] if k not in done[self.ranks[0]]]
        if stuck:
            sys.exit(f"the trace's events do not fit: {stuck[0]} never starts")
        return max(max(of.values()) for of in done.values())

    def longer_lane(self, costs):
        lanes = ((lane, rank) for lane in (COMPUTE, COMM) for rank in self.ranks)
        return max(sum(costs[rank][k] for k in self.order[rank][lane]) for lane, rank in lanes)


def main(path, numbers):
    steps, arrows = load(path)
    overlapped = {n: s for n, s in steps.items() if s[0]["args"]["schedule"] == "overlapped"}
    if not numbers:
        rows = {n: sum(e["args"]["rows"] for e in s if e["name"] == "embed") for n, s in overlapped.items()}
        numbers = [n for n in rows if rows[n] == max(rows.values())]
    share = "longer lane's share"
    print(f"| step | measured ms | replayed | {share} | experts alike | {share} | all alike | {share} |")
    print("|---|---|---|---|---|---|---|---|")
    for n in numbers:
        if n not in overlapped:
            sys.exit(f"step {n} is not among the overlapped steps of {path}: {sorted(overlapped)}")
        step = Step(overlapped[n], arrows)
        line = f"| {n} | {step.ms:.0f}"
        for alike in (lambda name: False, lambda name: name == "experts", lambda name: True):
            costs = step.costs(alike)
            ms = step.replay(costs)
            line += f" | {ms:.0f} | {step.longer_lane(costs) / ms:.3f}"
        print(line + " |")


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    main(sys.argv[1], [int(n) for n in sys.argv[2:]])
