"""The operators, thin, one class a step, and the task groups that the backup DAGs share.

This room and `airflow_plugin` are the only ones that know Airflow. A step resolves Airflow's connections into plain
values, calls the engine, and returns a few facts.
"""
