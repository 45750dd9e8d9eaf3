"""Any moment: which can be reached, what it takes, and how database, objects and configuration come back to it."""
