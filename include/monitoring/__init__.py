"""What people are told about backups, and what is measured for them."""
