"""The backup engine, its operators and its sandbox. `docs/architecture.md` draws the rooms."""
