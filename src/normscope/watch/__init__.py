"""Floor 4: watching a training without touching it. When to look, where to look, and what each look measures."""
