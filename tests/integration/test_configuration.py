"""The configuration as of one moment: exactly its refs, and the files beside it as they were (R2.3, R5.1)."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from include.pipeline.process import child_environment, run_source
from include.recovery.configuration import ConfigurationRefused, restore_configuration, return_files
from include.recovery.objects import TargetNotEmpty, WouldOverwrite
from include.recovery.selection import NothingMatches
from include.repository.contents import REPOSITORY_BUNDLE
from include.sources.configuration import Configuration, ConfigurationError, ConfigurationPoint, unpack

COMPONENTS = {REPOSITORY_BUNDLE: "system_settings", "config/files.tar": "files"}
GLOBS = ("environment/*.env", "secrets/*")
PERSON = {
    f"GIT_{role}_{what}": value
    for role in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "Test"), ("EMAIL", "test@example.com"))
}


def git(checkout: Path, *arguments: str) -> str:
    environment = {"PATH": os.environ["PATH"], "HOME": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", **PERSON}
    done = subprocess.run(
        ["git", "-c", "safe.directory=*", "-C", str(checkout), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def commit(checkout: Path, text: str) -> str:
    (checkout / "settings.yaml").write_text(text)
    git(checkout, "add", "settings.yaml")
    git(checkout, "commit", "--quiet", "--message", text)
    return git(checkout, "rev-parse", "HEAD")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    path = tmp_path / "configuration"
    path.mkdir()
    git(path, "init", "--quiet", "--initial-branch=main")
    commit(path, "first")
    return path


@dataclass
class Opened:
    """As much of an opened backup as the configuration's restore asks for."""

    point: ConfigurationPoint
    artifacts: dict[str, bytes]

    @property
    def manifest(self) -> SimpleNamespace:
        return SimpleNamespace(
            id="full-20261122T000000Z",
            consistency_point=SimpleNamespace(configuration_commit=self.point.commit),
            configuration=SimpleNamespace(branch=self.point.branch, refs_sha256=self.point.refs_sha256),
            artifacts=[_artifact(name) for name in self.artifacts],
            artifact=_artifact,
        )

    def read(self, name: str) -> Iterator[bytes]:
        raw = self.artifacts[name]
        return iter([raw[start : start + 1000] for start in range(0, len(raw), 1000)])


def _artifact(name: str) -> SimpleNamespace:
    return SimpleNamespace(name=name, component=COMPONENTS[name])


def back_up(checkout: Path, point: ConfigurationPoint | None = None, *, globs: tuple[str, ...] = GLOBS) -> Opened:
    configuration = Configuration(checkout)
    point = point or configuration.point()
    with (
        configuration.bundle_command(point, checkout.parent) as argv,
        run_source(argv, environment={}, stall_limit=timedelta(minutes=1)) as chunks,
    ):
        bundle = b"".join(chunks)
    tar = b"".join(configuration.tar(configuration.files(globs)))
    return Opened(point, {REPOSITORY_BUNDLE: bundle, "config/files.tar": tar})


def refs(checkout: Path) -> dict[str, str]:
    return dict(reversed(line.split(" ")) for line in git(checkout, "show-ref").splitlines())  # type: ignore[misc]


# The repository


@pytest.mark.requirement("R2.3", "R4.3")
def test_a_bundle_is_of_the_recorded_moment_whatever_came_later(checkout: Path, tmp_path: Path) -> None:
    git(checkout, "branch", "stable")
    git(checkout, "tag", "--annotate", "v1", "--message", "one")
    point, before = Configuration(checkout).point(), refs(checkout)
    later = commit(checkout, "later")
    git(checkout, "branch", "--force", "stable")
    git(checkout, "branch", "newer")
    git(checkout, "tag", "--delete", "v1")
    restored = tmp_path / "restored"
    back = restore_configuration(back_up(checkout, point), restored)

    assert back == point.commit == git(restored, "rev-parse", "HEAD") != later
    assert refs(restored) == before
    assert git(restored, "symbolic-ref", "HEAD") == "refs/heads/main"
    assert (restored / "settings.yaml").read_text() == "first"
    assert git(restored, "status", "--porcelain", "--untracked-files=no") == ""
    with pytest.raises(subprocess.CalledProcessError):
        git(restored, "cat-file", "-e", later)


def test_a_detached_head_comes_back_detached(checkout: Path, tmp_path: Path) -> None:
    first = git(checkout, "rev-parse", "HEAD")
    commit(checkout, "second")
    git(checkout, "checkout", "--quiet", "--detach")
    loose = commit(checkout, "on no branch")
    opened, restored = back_up(checkout), tmp_path / "restored"
    restore_configuration(opened, restored)

    assert (opened.point.branch, opened.point.commit) == (None, loose)
    assert git(restored, "rev-parse", "HEAD") == loose
    assert (restored / "settings.yaml").read_text() == "on no branch"
    assert git(restored, "rev-parse", "main~1") == first
    with pytest.raises(subprocess.CalledProcessError):
        git(restored, "symbolic-ref", "HEAD")


def test_every_kind_of_ref_comes_back(checkout: Path, tmp_path: Path) -> None:
    git(checkout, "checkout", "--quiet", "-b", "feature/zürich")
    commit(checkout, "second")
    git(checkout, "tag", "light")
    git(checkout, "tag", "--annotate", "heavy", "--message", "heavy")
    git(checkout, "update-ref", "refs/remotes/origin/main", "main")
    git(checkout, "pack-refs", "--all")
    restored = tmp_path / "restored"
    restore_configuration(back_up(checkout), restored)

    assert refs(restored) == refs(checkout)
    assert git(restored, "symbolic-ref", "HEAD") == "refs/heads/feature/zürich"
    assert git(restored, "remote") == ""


def test_reading_changes_nothing_in_the_checkout(checkout: Path) -> None:
    def state() -> dict[str, tuple[int, int]]:
        return {str(p): (p.lstat().st_mtime_ns, p.lstat().st_size) for p in sorted(checkout.rglob("*"))}

    before = state()
    back_up(checkout)
    assert state() == before


def test_a_checkout_of_another_user_is_read(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As git sees it: a variable of its own test suite makes every repository somebody else's."""
    strange = {**child_environment(), "GIT_TEST_ASSUME_DIFFERENT_OWNER": "1"}
    refused = subprocess.run(["git", "-C", checkout, "log"], env=strange, capture_output=True, check=False)
    commit_of_ours = git(checkout, "rev-parse", "HEAD")
    monkeypatch.setattr("include.sources.configuration.child_environment", lambda: strange)

    assert b"dubious ownership" in refused.stderr
    assert Configuration(checkout).point().commit == commit_of_ours
    assert restore_configuration(back_up(checkout), tmp_path / "restored") == commit_of_ours


def test_the_workers_own_git_variables_bend_nothing(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    monkeypatch.setenv("GIT_WORK_TREE", "/nonexistent")
    assert Configuration(checkout).point().commit == git(checkout, "rev-parse", "HEAD")


def test_what_is_no_checkout_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="git") as refused:
        Configuration(tmp_path / "absent").point()
    assert str(tmp_path / "absent") in refused.value.what


@pytest.mark.requirement("R4.5")
def test_a_bundle_of_another_commit_is_refused_and_nothing_is_put_in_place(checkout: Path, tmp_path: Path) -> None:
    opened = back_up(checkout)
    opened.point = ConfigurationPoint("0" * 40, opened.point.branch, opened.point.refs)
    restored = tmp_path / "restored"
    with pytest.raises(ConfigurationRefused, match=git(checkout, "rev-parse", "HEAD")):
        restore_configuration(opened, restored)
    assert {path.name for path in tmp_path.iterdir()} == {"configuration"}


def test_a_bundle_that_is_none_is_refused(checkout: Path, tmp_path: Path) -> None:
    opened = back_up(checkout)
    opened.artifacts[REPOSITORY_BUNDLE] = b"no bundle"
    with pytest.raises(ConfigurationRefused):
        restore_configuration(opened, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


# The place


def test_a_place_that_holds_something_is_left_alone(checkout: Path, tmp_path: Path) -> None:
    opened, target = back_up(checkout), tmp_path / "target"
    target.mkdir()
    (target / "mine").write_text("mine")
    for place in (target, target / "mine"):
        with pytest.raises(TargetNotEmpty, match=str(place)):
            restore_configuration(opened, place)
    assert [path.name for path in target.iterdir()] == ["mine"]


def test_an_empty_place_is_taken(checkout: Path, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    target.mkdir(parents=True)
    restore_configuration(back_up(checkout), target)

    assert (target / "settings.yaml").read_text() == "first"
    assert [path.name for path in target.parent.iterdir()] == ["target"]


# Some files, into a checkout in use


@pytest.fixture
def in_use(checkout: Path, tmp_path: Path) -> tuple[Opened, Path]:
    """A backup, and a checkout of that moment that somebody has worked in since."""
    (checkout / "run.sh").write_text("#!/bin/sh\n")
    (checkout / "run.sh").chmod(0o755)
    git(checkout, "add", "run.sh")
    commit(checkout, "as it was")
    write(checkout / "environment" / "production.env", "PORT=1\n", 0o640)
    write(checkout / "environment" / "staging.env", "PORT=2\n", 0o600)
    write(checkout / "secrets" / "api.key", "secret", 0o400)
    opened = back_up(checkout)
    commit(checkout, "broken")
    write(checkout / "environment" / "production.env", "PORT=broken\n", 0o666)
    (checkout / "environment" / "staging.env").unlink()
    return opened, checkout


def contents(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): path.read_text()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and ".git" not in path.parts
    }


@pytest.mark.requirement("R5.1", "R2.3")
def test_a_file_that_is_gone_comes_back_alone(in_use: tuple[Opened, Path]) -> None:
    opened, checkout = in_use
    before = contents(checkout)
    returned = return_files(opened, checkout, patterns=["environment/st*.env", "run.sh"])

    assert (returned.written, returned.unchanged) == (("environment/staging.env",), ("run.sh",))
    assert (returned.replaced, returned.kept_in, returned.commit) == ((), None, opened.point.commit)
    assert contents(checkout) == before | {"environment/staging.env": "PORT=2\n"}
    assert stat.S_IMODE((checkout / "environment/staging.env").stat().st_mode) == 0o600


@pytest.mark.requirement("R5.1")
def test_a_file_that_is_there_is_replaced_only_when_that_is_said(in_use: tuple[Opened, Path], tmp_path: Path) -> None:
    opened, checkout = in_use
    wanted, before, kept = ["environment/*", "settings.yaml"], contents(checkout), tmp_path / "kept"
    with pytest.raises(WouldOverwrite, match=r"2 files .*environment/production\.env, settings\.yaml in"):
        return_files(opened, checkout, patterns=wanted)
    refused = contents(checkout)
    (checkout / "settings.yaml").chmod(0o640)
    returned = return_files(opened, checkout, patterns=wanted, keep_in=kept)

    assert refused == before
    assert returned.replaced == ("environment/production.env", "settings.yaml")
    assert returned.written == ("environment/production.env", "environment/staging.env", "settings.yaml")
    assert (checkout / "environment/production.env").read_text() == "PORT=1\n"
    assert stat.S_IMODE((checkout / "environment/production.env").stat().st_mode) == 0o640
    assert (checkout / "settings.yaml").read_text() == "as it was"
    assert stat.S_IMODE((checkout / "settings.yaml").stat().st_mode) == 0o640
    assert contents(kept) == {"environment/production.env": "PORT=broken\n", "settings.yaml": "broken"}
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    assert not [path for path in checkout.iterdir() if path.name.startswith(".synapse")]


def test_a_component_of_the_configuration_goes_to_a_place_of_its_own(
    in_use: tuple[Opened, Path], tmp_path: Path
) -> None:
    opened, _ = in_use
    returned = return_files(opened, tmp_path / "place", components=["files"])

    assert set(contents(tmp_path / "place")) == set(returned.written)
    assert returned.written == ("environment/production.env", "environment/staging.env", "secrets/api.key")
    assert stat.S_IMODE((tmp_path / "place/secrets/api.key").stat().st_mode) == 0o400
    tracked = return_files(opened, tmp_path / "tracked", components=["system_settings"])
    assert tracked.written == ("run.sh", "settings.yaml")
    assert os.access(tmp_path / "tracked/run.sh", os.X_OK)


@pytest.mark.parametrize(
    ("patterns", "components", "told"),
    [
        (
            ["environment/prod.env"],
            [],
            r"no configuration file environment/prod\.env\. Near it: environment/production\.env",
        ),
        (["run.sh", "nothing*"], [], r"no configuration file nothing\*"),
        ([], ["secret"], r"component secret\. It has: system_settings, files"),
    ],
)
def test_a_file_that_the_backup_does_not_have_is_told(
    in_use: tuple[Opened, Path], *, patterns: list[str], components: list[str], told: str
) -> None:
    opened, checkout = in_use
    before = contents(checkout)
    with pytest.raises(NothingMatches, match=told):
        return_files(opened, checkout, patterns=patterns, components=components)
    assert contents(checkout) == before


def test_a_link_is_replaced_as_a_link(checkout: Path, tmp_path: Path) -> None:
    write(checkout / "environment" / "shared.env", "shared", 0o600)
    link, outside = checkout / "environment" / "production.env", tmp_path / "outside"
    link.symlink_to("shared.env")
    opened = back_up(checkout)
    outside.write_text("outside")
    link.unlink()
    link.symlink_to(outside)
    returned = return_files(opened, checkout, patterns=[f"environment/{link.name}"], keep_in=tmp_path / "kept")

    assert returned.replaced == ("environment/production.env",)
    assert link.readlink() == Path("shared.env")
    assert outside.read_text() == "outside"
    assert (tmp_path / "kept/environment/production.env").readlink() == outside


def test_a_directory_is_never_replaced_by_a_file(in_use: tuple[Opened, Path], tmp_path: Path) -> None:
    opened, checkout = in_use
    (checkout / "environment/staging.env").mkdir()
    with pytest.raises(WouldOverwrite, match=r"staging\.env is a directory"):
        return_files(opened, checkout, patterns=["environment/*"], keep_in=tmp_path / "kept")
    assert (checkout / "environment/production.env").read_text() == "PORT=broken\n"
    assert not (tmp_path / "kept").exists()


@pytest.mark.requirement("R5.3")
def test_a_whole_configuration_is_replaced_and_the_old_one_kept(in_use: tuple[Opened, Path], tmp_path: Path) -> None:
    opened, checkout = in_use
    before, kept = contents(checkout), tmp_path / "kept"
    restore_configuration(opened, checkout, keep_as=kept)

    assert contents(kept) == before
    assert (checkout / "settings.yaml").read_text() == "as it was"
    assert git(checkout, "rev-parse", "HEAD") == opened.point.commit


# The files beside the repository


def write(path: Path, text: str, mode: int) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


@pytest.mark.requirement("R2.3", "R5.1")
def test_files_come_back_with_content_mode_and_time(checkout: Path, tmp_path: Path) -> None:
    modes = {"production.env": 0o600, "staging.env": 0o640, "locked.env": 0o400, "öffentlich.env": 0o664}
    for name, mode in modes.items():
        write(checkout / "environment" / name, f"NAME={name}\n", mode)
    write(checkout / "environment" / "notes.txt", "not configuration", 0o600)
    write(checkout / "secrets" / "empty.key", "", 0o600)
    os.utime(checkout / "secrets" / "empty.key", (1_000_000_000, 1_000_000_000))
    restored = tmp_path / "restored"
    restore_configuration(back_up(checkout), restored)

    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (restored / "environment").iterdir()}
    assert found == modes
    assert (restored / "environment/öffentlich.env").read_text() == "NAME=öffentlich.env\n"
    assert (restored / "secrets/empty.key").stat().st_mtime == 1_000_000_000


def test_a_tar_names_no_owner_and_is_read_by_others(checkout: Path) -> None:
    write(checkout / "secrets" / ("long" * 40 + ".key"), "key", 0o600)
    configuration = Configuration(checkout)
    tar = b"".join(configuration.tar(configuration.files(GLOBS)))
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        (member,) = archive.getmembers()

    assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")
    assert member.name == "secrets/" + "long" * 40 + ".key"


def test_a_link_within_the_checkout_stays_one(checkout: Path, tmp_path: Path) -> None:
    write(checkout / "environment" / "shared.env", "shared", 0o600)
    (checkout / "environment" / "production.env").symlink_to("shared.env")
    (checkout / "secrets").mkdir()
    (checkout / "secrets" / "later.key").symlink_to("../environment/not yet there")
    restored = tmp_path / "restored"
    restore_configuration(back_up(checkout), restored)

    assert (restored / "environment/production.env").readlink() == Path("shared.env")
    assert (restored / "environment/production.env").read_text() == "shared"
    assert (restored / "secrets/later.key").is_symlink()


@pytest.mark.parametrize("absolute", [True, False])
def test_of_a_link_out_of_the_checkout_the_content_is_taken(checkout: Path, tmp_path: Path, absolute: bool) -> None:
    write(tmp_path / "etc" / "synapse.env", "outside", 0o640)
    (checkout / "environment").mkdir()
    link = checkout / "environment" / "production.env"
    link.symlink_to(tmp_path / "etc" / "synapse.env" if absolute else "../../etc/synapse.env")
    opened = back_up(checkout)
    shutil.rmtree(tmp_path / "etc")
    restored = tmp_path / "restored"
    restore_configuration(opened, restored)

    assert not (restored / "environment/production.env").is_symlink()
    assert (restored / "environment/production.env").read_text() == "outside"
    assert stat.S_IMODE((restored / "environment/production.env").stat().st_mode) == 0o640


def test_a_link_that_leads_out_to_nothing_is_named(checkout: Path) -> None:
    (checkout / "environment").mkdir()
    (checkout / "environment" / "production.env").symlink_to("/nonexistent/synapse.env")
    with pytest.raises(ConfigurationError, match=r"environment/production\.env cannot be read: No such file"):
        back_up(checkout)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(checkout: Path) -> None:
    write(checkout / "secrets" / "large.key", "x" * (5 << 20), 0o600)
    tar = Configuration(checkout).tar([Path("secrets/large.key")])
    next(tar)
    next(tar)
    os.truncate(checkout / "secrets" / "large.key", 10)
    with pytest.raises(ConfigurationError, match=r"secrets/large\.key was cut"):
        list(tar)


def test_large_files_are_streamed(checkout: Path) -> None:
    write(checkout / "secrets" / "large.key", "x" * (5 << 20), 0o600)
    assert max(len(chunk) for chunk in Configuration(checkout).tar([Path("secrets/large.key")])) <= 1 << 20


@pytest.mark.parametrize("name", ["../outside", "{tmp_path}/outside", "inside/../../outside"])
def test_a_tar_that_was_made_to_escape_does_not(tmp_path: Path, name: str) -> None:
    evil, directory = io.BytesIO(), tmp_path / "deep"
    with tarfile.open(mode="w", fileobj=evil) as archive:
        archive.addfile(tarfile.TarInfo(name.format(tmp_path=tmp_path)))
    evil.seek(0)
    directory.mkdir()
    with pytest.raises(ConfigurationError, match="outside"):
        unpack(evil, directory)

    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


@pytest.mark.parametrize("target", ["../outside", "/etc/passwd", "inside/../../outside"])
def test_a_link_that_was_made_to_escape_does_not(tmp_path: Path, target: str) -> None:
    evil, directory, link = io.BytesIO(), tmp_path / "deep", tarfile.TarInfo("link")
    link.type, link.linkname = tarfile.SYMTYPE, target
    with tarfile.open(mode="w", fileobj=evil) as archive:
        archive.addfile(link)
    evil.seek(0)
    directory.mkdir()
    with pytest.raises(ConfigurationError, match="outside"):
        unpack(evil, directory)

    assert list(directory.iterdir()) == []
