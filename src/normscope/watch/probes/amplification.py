"""How a shift grows on its way down the network: what one layer's own last update does to every layer behind it.

Ioffe & Szegedy 2015, section 1: "small changes to the network parameters amplify as the network becomes deeper".
"""

from __future__ import annotations

from collections.abc import Iterable

from normscope.watch.bench import LAYERS, Bench, Experiment, spread
from normscope.watch.deviation import deviation
from normscope.watch.measure import Reading, Scalar


class Amplification(Experiment):
    """One layer moves by its own update, all others stay at θ_t; the outputs on the fixed batch are compared.

    - ``depth_amplification`` of layer i: the shift of the last layer's output over the shift of layer i's own, both in
      standard deviations of the output (`watch.deviation`). Above 1 the shift grew on its way.
    - ``shift_from:<path>`` at each output behind it, its own among them: the shift that arrived there.

    At most `LAYERS` layers are moved, evenly over the depth; parameters of no norm or producer have no output of their
    own and stay. This takes one forward pass for each, and one for all.
    """

    passes = LAYERS + 1

    def run(self, bench: Bench) -> Iterable[Reading]:
        """The shifts that arrive, and the growth to the last layer."""
        still = bench.outputs(bench.before)
        ends = [site for site, _ in still.values() if site.role != "activation"]
        if not ends:
            return
        last = max(ends, key=lambda site: site.depth)
        layers = [layer for layer in bench.layers if layer.site.what == "output" and layer.depth < last.depth]
        for layer in spread(layers, LAYERS):
            moved = bench.outputs(bench.mixed(layer.own))
            shifts = {
                site.key: (site, deviation(summary, moved[key][1]))
                for key, (site, summary) in still.items()
                if key in moved and site.depth >= layer.site.depth
            }
            for site, shift in shifts.values():
                yield Scalar(site, f"shift_from:{layer.site.path}", shift)
            own, end = (shifts[site.key][1] for site in (layer.site, last))
            if 0 < own < float("inf"):
                yield Scalar(layer.site, "depth_amplification", end / own)
