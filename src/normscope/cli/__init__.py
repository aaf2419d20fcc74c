"""Floor 7: the command line. Each file is one command: it parses, composes what the floors below offer, and prints."""
