"""What this project adds to Airflow's pages. `plugins/backup_plugin.py` registers it.

With `operators` the only room that knows Airflow.
"""
