"""What is backed up: the database, the object store and the configuration repository (R2). Knows nothing of Airflow."""
