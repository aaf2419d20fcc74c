"""Article 000: notes on internal covariate shift in deep learning."""
