"""Floor 4: what a run looks like. One tree of parts, painted as a page and as text."""
