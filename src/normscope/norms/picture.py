"""Which cells share statistics, drawn: a small tensor with the cells that share one cell's statistics filled in."""

from __future__ import annotations

from normscope.terms.spec import NormSpec

SAMPLES, CHANNELS, POSITIONS = 3, 6, 5
_GROUPS = 2  # drawn for any number of groups above one
Cell = tuple[int, int, int]


def together(spec: NormSpec) -> frozenset[Cell]:
    """The cells (sample, channel, position) that share statistics with the first one.

    >>> from normscope.terms.catalog import CATALOG
    >>> len(together(CATALOG["InstanceNorm"])) == POSITIONS
    True
    """
    many = spec.groups > 1
    width = CHANNELS // _GROUPS if many else CHANNELS
    mixes = "C" in spec.over or (spec.scale == "whiten")
    return frozenset(
        (n, c, s)
        for n in range(SAMPLES if "N" in spec.over else 1)
        for c in range(width if mixes else 1)
        for s in range(POSITIONS if "S" in spec.over else 1)
    )


def as_text(spec: NormSpec) -> str:
    """Samples side by side, channels down, positions across; filled cells share statistics."""
    filled = together(spec)
    heads = "   ".join(f"N{n + 1}".ljust(2 * POSITIONS - 1) for n in range(SAMPLES))
    lines = ["     " + heads.rstrip()]
    for c in range(CHANNELS):
        rows = (" ".join("■" if (n, c, s) in filled else "·" for s in range(POSITIONS)) for n in range(SAMPLES))
        lines.append(f"  C{c + 1} " + "   ".join(rows))
    return "\n".join([*lines, "     S →"])


def as_svg(spec: NormSpec) -> str:
    """The cube: samples to the right, channels up, positions into the page."""
    filled, size, slant = together(spec), 26, 11
    faces = []
    for n in range(SAMPLES):
        for s in reversed(range(POSITIONS)):
            for c in reversed(range(CHANNELS)):
                x = 34 + n * (size + POSITIONS * slant + 8) + s * slant
                y = 30 + POSITIONS * slant + c * size - s * slant
                faces.append(_block(x, y, size, slant, "on" if (n, c, s) in filled else "off"))
    width = 34 + SAMPLES * (size + POSITIONS * slant + 8) + 12
    height = 44 + POSITIONS * slant + CHANNELS * size
    style = (
        ".on{fill:#2f6fde}.off{fill:#e9edf3}.on.t{fill:#6b9bf0}.off.t{fill:#f4f6f9}.on.s{fill:#1f4fa8}.off.s{fill:#d3dae4}"
        "polygon{stroke:#8894a6;stroke-width:.6}text{font:13px sans-serif;fill:#6b7688}"
    )
    words = (
        f'<text x="{width // 2}" y="{height - 4}" text-anchor="middle">N, samples</text>'
        f'<text x="12" y="{height // 2}" transform="rotate(-90 12 {height // 2})">C, channels</text>'
        f'<text x="36" y="{24 + slant}" transform="rotate(-45 36 {24 + slant})">S</text>'
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
    return f'{head} aria-label="{"".join(sorted(spec.over))}"><style>{style}</style>{"".join(faces)}{words}</svg>\n'


def _block(x: int, y: int, size: int, slant: int, kind: str) -> str:
    front = f"{x},{y} {x + size},{y} {x + size},{y + size} {x},{y + size}"
    top = f"{x},{y} {x + slant},{y - slant} {x + size + slant},{y - slant} {x + size},{y}"
    side = f"{x + size},{y} {x + size + slant},{y - slant} {x + size + slant},{y + size - slant} {x + size},{y + size}"
    polygons = ((front, ""), (top, " t"), (side, " s"))
    return "".join(f'<polygon class="{kind}{face}" points="{points}"/>' for points, face in polygons)
