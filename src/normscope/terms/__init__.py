"""Floor 1: frozen data. What a normalization, a site, a finding and a verdict are. No torch at run time."""
