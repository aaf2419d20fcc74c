"""Floor 3: every normalization. `sources` say where statistics come from, `module` is the layer."""
