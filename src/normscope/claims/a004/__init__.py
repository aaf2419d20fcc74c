"""Article 004: what batch normalization is bad at."""
