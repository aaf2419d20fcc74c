"""The formula as compositions of torch's own functions, which torch differentiates."""
