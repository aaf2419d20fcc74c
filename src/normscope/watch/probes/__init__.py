"""What is measured on the fixed batch: one measure a file, found by its place."""
