"""The recovery runbook, for the worst day and every drill of it: planned as data, timed and proved (R5.3)."""
