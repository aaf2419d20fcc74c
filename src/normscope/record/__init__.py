"""Floor 3: the record, the only thing between training and analysis. One SQLite file per rank in a run directory."""
