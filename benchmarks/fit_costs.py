"""Write the table of costs by which dispatch chooses, `normscope/kernels/cost_table.py`, from what was measured.

    python benchmarks/fit_costs.py [RESULTS.json …]

Without a name: every kernels-*.json and gpu-*.json under benchmarks/results that was measured with a reused heap (what
the default allocator adds, it adds to ATen). A row is one offer for one kind of problem: the medians at the measured
sizes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from problems import OVER, Case

RESULTS = Path(__file__).parent / "results"
TABLE = Path(__file__).parents[1] / "src" / "normscope" / "kernels" / "cost_table.py"
OFFERS = ("aten", "numba", "triton", "compile")  # the last: torch's own functions, compiled
HEAD = '''"""The measured costs of forward and backward, written by `benchmarks/fit_costs.py`; not by hand.

{about}
"""

# (offer, device, statistics over, memory, dtype, what follows) → (numbers of the input, microseconds) by size.
# Memory is "channels_last" wherever the channels lie side by side.
# fmt: off
COSTS: dict[tuple[str, str, str, str, str, str], tuple[tuple[int, float], ...]] = {{
{rows}
}}
'''

Key = tuple[str, str, str, str, str, str]


def key_of(offer: str, device: str, case: Case) -> Key:
    """Where dispatch looks for the cost of a case."""
    memory = "channels_last" if OVER[case.norm] == "C" else case.memory
    family = "C rms" if case.norm == "rms" else OVER[case.norm]
    return offer, device, family, memory, case.dtype, (case.activation or "") + " + residual" * case.residual


def points(device: str, rows: dict[str, Any]) -> dict[Key, list[tuple[int, float]]]:
    """The medians in microseconds of every offer that was measured, by the size of the input."""
    found: dict[Key, list[tuple[int, float]]] = {}
    for row in rows.values():
        case = Case(*row["case"][:4], tuple(row["case"][4]), *row["case"][5:])
        for offer in OFFERS:
            if offer in row:
                told = (case.elements, float(f"{row[offer][0]:.4g}"))
                found.setdefault(key_of(offer, device, case), []).append(told)
    return {key: sorted(found[key]) for key in sorted(found)}


def written(machines: list[str], found: dict[Key, list[tuple[int, float]]]) -> str:
    """The file."""
    rows = [f"    {key!r}:\n        {tuple(seen)!r},".replace("'", '"') for key, seen in found.items()]
    return HEAD.format(about="\n".join(machines), rows="\n".join(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, default=TABLE)
    options = parser.parse_args()
    files = options.results or [path for kind in ("kernels", "gpu") for path in sorted(RESULTS.glob(f"{kind}-*.json"))]
    machines, found = [], {}
    for path in files:
        held = json.loads(path.read_text())
        if not held.get("fresh"):
            machines.append(held["machine"] + ".")
            found |= points(held["device"], held["rows"])
    if not found:
        sys.exit("There is nothing that was measured.")
    options.out.write_text(written(machines, found))
    print(f"{len(found)} rows from {', '.join(path.name for path in files)}")


if __name__ == "__main__":
    main()
