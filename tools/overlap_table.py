#!/usr/bin/env python3
"""Tables and a heat map from the JSON files of `duet bench overlap`.

usage: overlap_table.py FILE.json...                    one Markdown row per case
       overlap_table.py --heat-map OUT.svg FILE.json... S of on and of auto by tokens and share
"""
import json
import os
import statistics
import sys


PARTS = ("split_price", "comm_cpu", "bubbles", "imbalance_and_wakeups")


def load(files):
    for file in files:
        cases = json.load(open(file))
        name = os.path.splitext(os.path.basename(file))[0]
        for case in cases:
            yield f"{name} {case['tokens']}" if len(cases) > 1 else name, case


def table(files):
    print("| case | share | T off ms | T on ms | m | S | S* | η | h | longer lane in the overlapped step: busy ·"
          " times as long as alone | beyond it, ms: split · comm CPU · bubbles · waits | auto / off | auto / better"
          " | prediction |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    errors, exact, below_off, below_better = [], True, [], []
    for name, c in load(files):
        if c["virtual"]:
            print(f"| {name} virtual | {c['comm_share']:.0%} | {c['t_seq_ms']:.0f} |"
                  f" {c['t_overlap_ms']:.0f} | {c['micro_batches']} | {c['S']:.2f} | {c['S_star']:.2f} |"
                  f" {c['eta']:.3f} | {c['h']:.2f} | | | | | |")
            continue
        exact = exact and c["bit_identical"]
        error = c["predicted_on_ms"] / c["t_overlap_ms"] - 1 if c["predicted_on_ms"] else 0
        errors.append(abs(error))
        if c["auto_over_off"]["high"] < 0.99:
            below_off.append(name)
        if c["auto_over_best"]["high"] < 0.97:
            below_better.append(name)
        off, better, beyond = c["auto_over_off"], c["auto_over_best"], c["beyond_longer_lane_ms"]
        longer = "compute_ms" if c["t_compute_ms"] >= c["t_comm_ms"] else "comm_ms"
        alone = max(c["t_compute_ms"], c["t_comm_ms"])
        busy, stretch = c["on"][longer] / c["on"]["step_ms"], c["on"][longer] / alone
        print(f"| {name} | {c['comm_share']:.0%} | {c['t_seq_ms']:.0f} | {c['t_overlap_ms']:.0f} |"
              f" {c['micro_batches']} | {c['S']:.2f} | {c['S_star']:.2f} | {c['eta']:.3f} | {c['h']:.2f} |"
              f" {'computing' if longer == 'compute_ms' else 'network'} {busy:.1%} · {stretch:.2f} |"
              f" {' · '.join(f'{beyond[k]:.0f}' for k in PARTS)} |"
              f" {off['median']:.2f} [{off['low']:.2f}, {off['high']:.2f}] |"
              f" {better['median']:.2f} [{better['low']:.2f}, {better['high']:.2f}] | {error:+.1%} |")
    if errors:
        print(f"\nPrediction against measurement, median of {len(errors)} cases: {statistics.median(errors):.1%}."
              f" Logits bit-identical in {'every case' if exact else 'NOT every case'}.")
        print(f"\nThe 95 % interval lies below 0.99 for auto / off in {', '.join(below_off) or 'no case'};"
              f" below 0.97 for auto / better of off and on in {', '.join(below_better) or 'no case'}.")


def colour(speedup):
    """White at 1, green above, red below."""
    t = max(-1.0, min(1.0, (speedup - 1.0) / (0.8 if speedup >= 1 else 0.3)))
    far = (24, 128, 56) if t >= 0 else (190, 40, 30)
    return "#%02x%02x%02x" % tuple(round(255 + (f - 255) * abs(t)) for f in far)


def heat_map(out, files):
    cases = [c for _, c in load(files) if not c["virtual"]]
    panels = sorted({(c["phase"], c["path"]) for c in cases})
    cell_w, cell_h, left, top = 52, 26, 92, 64
    svg, y0, width = [], 24, 0
    for phase, path in panels:
        mine = [c for c in cases if (c["phase"], c["path"]) == (phase, path)]
        tokens = sorted({c["tokens"] for c in mine})
        by_row = {t: sorted((c for c in mine if c["tokens"] == t), key=lambda c: c["comm_share"]) for t in tokens}
        columns = max(len(r) for r in by_row.values())
        for panel, key in enumerate(("on", "auto")):
            x0 = left + panel * (columns * cell_w + 110)
            svg.append(f'<text x="{x0}" y="{y0 + 14}" font-weight="bold">{phase}, {path}: S with {key}</text>')
            for row, t in enumerate(tokens):
                y = y0 + top - 36 + row * cell_h
                svg.append(f'<text x="{x0 - 8}" y="{y + 17}" text-anchor="end">{t} token{"s" * (t != 1)}</text>')
                for column, c in enumerate(by_row[t]):
                    s = c["S"] if key == "on" else c["auto_over_off"]["median"]
                    x = x0 + column * cell_w
                    svg.append(f'<rect x="{x}" y="{y}" width="{cell_w - 2}" height="{cell_h - 2}"'
                               f' fill="{colour(s)}" stroke="#999"/>')
                    svg.append(f'<text x="{x + cell_w / 2 - 1}" y="{y + 11}" text-anchor="middle">{s:.2f}</text>')
                    svg.append(f'<text x="{x + cell_w / 2 - 1}" y="{y + 21}" text-anchor="middle" font-size="8"'
                               f' fill="#555">{c["comm_share"]:.0%}</text>')
            # A heading is wider than few columns: seven pixels a letter, in bold.
            width = max(width, x0 + max(columns * cell_w, 7 * len(f"{phase}, {path}: S with {key}")) + 12)
        y0 += top + len(tokens) * cell_h
    with open(out, "w") as f:
        f.write(f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y0}"'
                ' font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
                f'<text x="12" y="16">Speed-up over off; small figures: communication share.</text>'
                + "".join(svg) + "</svg>\n")


if __name__ == "__main__":
    if len(sys.argv) > 3 and sys.argv[1] == "--heat-map":
        heat_map(sys.argv[2], sys.argv[3:])
    elif len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        table(sys.argv[1:])
    else:
        sys.exit(__doc__)
