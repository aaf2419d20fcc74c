"""Floor 2: what a model is made of. Which modules are norms, what runs in which order, which value feeds which."""
