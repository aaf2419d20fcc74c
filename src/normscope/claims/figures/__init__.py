"""The figures that people know, redrawn from the ledger's own runs: one figure a file, found by its place."""
