"""What a backup costs beside the tools that everybody knows, on one machine, one server and one store."""
