"""Registers with Airflow what `include/airflow_plugin` holds."""

from __future__ import annotations

from typing import Any, ClassVar

from airflow.plugins_manager import AirflowPlugin

from include.airflow_plugin.runbooks import MOUNTED, RunbookLink


class BackupPlugin(AirflowPlugin):
    """The runbooks."""

    name = "synapse_backups"
    fastapi_apps: ClassVar[list[Any]] = [MOUNTED]
    global_operator_extra_links: ClassVar[list[Any]] = [RunbookLink()]
