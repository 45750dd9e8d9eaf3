"""What a manifest names: everything that a copy of the backup needs, and nothing twice."""

from __future__ import annotations

from include.repository.layout import envelope_prefix, pack_key, wal_key, wal_owner
from include.repository.manifest import Pack
from include.repository.references import data_keys, envelope_prefixes, references
from tests.manifests import ATTEMPT, make, window


def test_segments_and_packs_are_named_with_what_must_be_there() -> None:
    manifest = make()

    assert [(each.key, each.stored_bytes) for each in references(manifest)] == [("k", 2), (pack_key("p"), 5)]
    assert data_keys(manifest) == {(manifest.id, manifest.attempt), ("p", manifest.attempt)}


def test_the_log_of_a_window_is_named_by_the_copies_that_it_relies_on() -> None:
    manifest = window("incremental", 60, (3, 5))
    system = manifest.database.system_identifier

    logs = [each.key for each in references(manifest) if each.key.startswith("wal/")]
    assert logs == [wal_key(system, file.name, ATTEMPT) for file in manifest.wal.files]
    assert len(logs) == 2
    assert (wal_owner(system), ATTEMPT) in data_keys(manifest)
    assert envelope_prefix(wal_owner(system), ATTEMPT) in envelope_prefixes(manifest)


def test_a_pack_of_the_backups_own_lies_with_it_and_is_opened_by_its_key() -> None:
    [shared] = make().packs
    own = shared.model_copy(update={"prefix": "archive/personal/2026-11/x/packs/"})
    manifest = make(packs=(own,), artifacts=())
    assert [each.key for each in references(manifest)] == ["archive/personal/2026-11/x/packs/p"]
    assert data_keys(manifest) == {(manifest.id, manifest.attempt)}


def test_a_manifest_that_says_nothing_of_a_packs_place_means_the_shared_one() -> None:
    [shared] = make().packs
    told = shared.model_dump()
    del told["prefix"]
    assert Pack.model_validate(told) == shared
