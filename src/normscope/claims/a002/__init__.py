"""Article 002: vanishing gradients; batch, layer, weight and cosine normalization."""
