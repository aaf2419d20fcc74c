"""Article 001: what batch normalization is for and how it works."""
