"""The rules, one ailment a file. A file here with a `RULE` is found by its place; nothing else has to be edited."""
