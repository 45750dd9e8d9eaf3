"""The PostgreSQL source (R2.1): logins, tools, the write barrier, the dumps and what is recorded about them."""
