"""What a backup needs, one thing at a time: *prepare* insists on it (R4.1, R4.2), `doctor` examines it all."""
