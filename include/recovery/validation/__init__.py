"""Looking at what came back as who depends on it will: its data, the application, the running service (R5.2)."""
