"""The claims ledger: every statement of the source articles that an experiment can decide, as an experiment."""
