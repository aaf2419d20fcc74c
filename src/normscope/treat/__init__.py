"""Floor 4: treatments, each a file that says what it preserves, and the trial that proves them."""
