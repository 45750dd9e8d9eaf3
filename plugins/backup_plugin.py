"""Registers with Airflow what `include/airflow_plugin` holds."""

from __future__ import annotations

from typing import Any, ClassVar

from airflow.plugins_manager import AirflowPlugin

from include.airflow_plugin import runbooks, validations
from include.airflow_plugin.runbooks import RunbookLink


class BackupPlugin(AirflowPlugin):
    """The runbooks, and the pages of validations."""

    name = "synapse_backups"
    fastapi_apps: ClassVar[list[Any]] = [runbooks.MOUNTED, validations.MOUNTED]
    global_operator_extra_links: ClassVar[list[Any]] = [RunbookLink()]
