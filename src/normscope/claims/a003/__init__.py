"""Article 003: the normalization layers of deep networks, one by one."""
