"""The embedded default: local servers and a small Synapse application with real data."""
