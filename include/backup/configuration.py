"""The configuration in a backup: the repository's refs as a bundle, and each component's files beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from include.backup.application import Application
from include.backup.attempt import Attempt
from include.pipeline.process import run_source
from include.policy import Component
from include.repository.contents import REPOSITORY_BUNDLE, configuration_files
from include.repository.manifest import ConfigurationSummary

if TYPE_CHECKING:
    from include.backup.consistency import Point


class ConfigurationCopy:
    """The configuration as of one consistency point; the files beside the repository are as they are read."""

    def __init__(self, attempt: Attempt, application: Application, point: Point) -> None:
        self._attempt, self._configuration = attempt, application.configuration
        self._point = point.observations.configuration
        self._files = 0

    def write(self) -> None:
        """The bundle, then the files."""
        self.write_repository()
        self.write_files()

    def write_repository(self) -> None:
        """A bundle of every ref as of the point."""
        attempt = self._attempt
        with (
            self._configuration.bundle_command(self._point, attempt.scratch) as argv,
            run_source(argv, environment={}, stall_limit=attempt.policy.pipeline.stall_limit) as chunks,
        ):
            attempt.write_structure(REPOSITORY_BUNDLE, chunks)

    def write_files(self) -> None:
        """A tar of each component's files."""
        for component in self._attempt.policy.components_of("configuration"):
            if component.files:
                self._write_component(component)

    def summary(self) -> ConfigurationSummary:
        """What the manifest says of it, once everything is written."""
        return ConfigurationSummary(branch=self._point.branch, files=self._files, refs_sha256=self._point.refs_sha256)

    def _write_component(self, component: Component) -> None:
        files = self._configuration.files(component.files)
        if not files:
            self._attempt.warn(f"Component {component.name}: no file matches {', '.join(component.files)}.")
        self._files += len(files)
        self._attempt.write(
            configuration_files(component.name),
            self._configuration.tar(files),
            component=component.name,
            retention_class=component.retention_class,
        )
