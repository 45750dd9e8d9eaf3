"""Making a backup: preparation, the consistent copy, and the proof that it can be restored (R4)."""
