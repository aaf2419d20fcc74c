"""Floor 5: the doctor. A rule reads a case and names an ailment; the engine finds rules and puts causes first."""
