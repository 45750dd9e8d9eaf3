"""The keyring: without it no backup can be read."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from include.cli.place import JsonOption, Place
from include.cli.printing import OUT, print_json
from include.errors import BackupError
from include.pipeline import escrow
from include.pipeline.keyring_file import create_file
from include.pipeline.keys import Kek, Keyring, keyring_path
from include.pipeline.kms import KmsKey
from include.policy.model import Keys
from include.repository import rotation
from include.repository.rotation import KEY_KINDS, Outcome, due_on

PASSPHRASE_VARIABLE = "BACKUP_ESCROW_PASSPHRASE"  # noqa: S105 - the name of one

KmsOption = Annotated[
    list[str] | None,
    typer.Option("--kms", metavar="ARN", help="A key of AWS KMS instead of one in the file; give one for each region."),
]
KmsEndpointOption = Annotated[
    list[str] | None, typer.Option("--kms-endpoint", help="Of a KMS that is not AWS, one for each --kms.")
]
PassphraseOption = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        help=f"A file whose first line is the passphrase; else {PASSPHRASE_VARIABLE}, else you are asked.",
    ),
]


class NotWritten(BackupError):
    """A file that was to be made, and exists."""


def create(
    path: Annotated[Path, typer.Argument(help="A new file; it gets mode 0600.")],
    kms: KmsOption = None,
    kms_endpoint: KmsEndpointOption = None,
) -> None:
    """Write a new keyring. `keyring export` a copy to where a fire cannot reach: without it every backup is noise."""
    keyring = Keyring.create(path, kms=[key.pinned() for key in _kms(kms, kms_endpoint)])
    keks = ", ".join(keyring.current_keks)
    OUT.print(f"{path}: key-encryption key {keks}, signing key {keyring.current_signing_key}")


def show(context: typer.Context, as_json: JsonOption = False) -> None:
    """Show which keys there are, of what kind and age, and which are current. Never a key."""
    place: Place = context.obj
    told = _told(place.read_keyring(), place.policy().keys)
    if as_json:
        print_json(told)
        return
    table = Table("key", "for", "where", "state", "rotation due", box=None, pad_edge=False)
    for key in told:
        table.add_row(*(key[name] for name in ("id", "for", "where", "state", "due")))
    OUT.print(table)


def rotate(
    context: typer.Context,
    kind: Annotated[Literal["kek", "signing", "both"], typer.Option(help="Which kind of key.")] = "both",
    kms: KmsOption = None,
    kms_endpoint: KmsEndpointOption = None,
) -> None:
    """Put new keys into the keyring file. Nothing in a bucket is touched: `keyring wrap` does that.

    The old keys go on beside the new ones for the policy's keys.handover: bring the new file to every worker within it.
    A kind whose rotation is under way gets no second key.
    """
    place: Place = context.obj
    policy, path = place.policy().keys, _path(place)
    made = rotation.make_keys(path, KEY_KINDS if kind == "both" else [kind], policy, kms=_kms(kms, kms_endpoint))
    if not made:
        OUT.print("A rotation is under way already: nothing was made. `keyring show` says until when.")
        return
    OUT.print(f"{path}: {' and '.join(made)}. What was there is kept beside it: put that copy away.")
    OUT.print(
        f"Bring the file to every worker within {policy.handover}, start again what runs for long (`stream`), export "
        "it to its escrow, and run `keyring wrap`."
    )


def wrap(context: typer.Context) -> None:
    """Give every data key in both buckets a wrap by the newest keys, and prove all of them. Can be done at any time."""
    place: Place = context.obj
    primary, keyring = place.backups(), place.read_keyring()
    replica = place.replica().bucket
    for bucket, source in ((primary, None), (replica, primary)):
        done = rotation.wrap_all(bucket, keyring, primary=source)
        done.require(bucket)
        proved: Outcome = rotation.prove_all(bucket, keyring, primary=source)
        proved.require(bucket)
        OUT.print(f"{bucket}: {proved.data_keys} data keys, {done.wraps} wraps made, {proved.wraps} proved.")


def retire(
    context: typer.Context, key: Annotated[str, typer.Argument(metavar="KEY", help="As `keyring show` names it.")]
) -> None:
    """Take an old key out of the keyring, when it is proved that nothing in either bucket needs it.

    Of a signing key the half that signs goes; the half that proves stays.
    """
    place: Place = context.obj
    path = _path(place)
    rotation.retire(path, key, [place.backups(), place.replica().bucket], place.policy().keys)
    OUT.print(f"{key} is out of {path}. The copy of the file beside it has it still: put it away, or destroy it.")


def export(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="A new file.")],
    passphrase_file: PassphraseOption = None,
) -> None:
    """Write the keyring, encrypted under a passphrase, for the safe; keep the passphrase elsewhere.

    Keys of AWS KMS are not in it: only their names are.
    """
    place: Place = context.obj
    path = _path(place)
    keyring, content = Keyring.load(path), path.read_bytes()
    passphrase = _passphrase(passphrase_file, confirm=True)
    sealed = escrow.seal(content, passphrase)
    _create(file, sealed)
    if escrow.unseal(file.read_bytes(), passphrase) != content:
        raise BackupError(f"{file} does not give the keyring back.", mend="Look at the disk; write another one.")
    OUT.print(f"{file}: {', '.join(sorted(keyring.ids))}. Opened again, and equal.")


def import_(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="What `keyring export` wrote.")],
    passphrase_file: PassphraseOption = None,
) -> None:
    """Bring the keyring back from its escrow, as the file that --keyring or BACKUP_KEYRING names; none may be there."""
    place: Place = context.obj
    path = _path(place)
    content = escrow.unseal(file.read_bytes(), _passphrase(passphrase_file, confirm=False))
    try:
        keyring = Keyring.parse(content)
    except ValueError:
        raise escrow.EscrowRefused(
            f"What {file} holds is no keyring of format 1 or 2.", mend="Use the version that wrote it."
        ) from None
    _create(path, content)
    OUT.print(f"{path}: {', '.join(sorted(keyring.ids))}. Now `doctor`.")


def public(context: typer.Context, file: Annotated[Path, typer.Argument(help="A new file.")]) -> None:
    """Write what an auditor needs: a keyring that proves every signature, opens nothing and signs nothing."""
    place: Place = context.obj
    keyring = place.read_keyring().public()
    _create(file, keyring.content())
    OUT.print(f"{file}: {', '.join(keyring.signing_keys)}")


def _told(keyring: Keyring, policy: Keys) -> list[dict[str, str]]:
    now = datetime.now(UTC)
    states = {
        **{id_: ("data keys", kek.kind, _kek_state(kek, now)) for id_, kek in keyring.keks.items()},
        **{id_: ("signatures", "local", _signing_state(keyring, id_, now)) for id_ in keyring.signing_keys},
    }
    newest = {*keyring.lasting_keks, keyring.newest_signing_key}
    return [
        {"id": id_, "for": what, "where": where, "state": state, "due": _due(id_, policy) if id_ in newest else ""}
        for id_, (what, where, state) in states.items()
    ]


def _kek_state(kek: Kek, now: datetime) -> str:
    if kek.until is None:
        return "current"
    return f"current until {_day(kek.until)}" if now < kek.until else "opens"


def _signing_state(keyring: Keyring, id_: str, now: datetime) -> str:
    key = keyring.signing_keys[id_]
    if key.private is None:
        return "proves"
    if id_ == keyring.current_signing_key:
        return "current"
    if key.starts is not None and now < key.starts:
        return f"proves; signs from {_day(key.starts)}"
    return "proves; not retired"


def _due(key: str, policy: Keys) -> str:
    return f"{due_on(key, policy):%Y-%m-%d}"


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _path(place: Place) -> Path:
    return place.keyring or keyring_path()


def _kms(arns: list[str] | None, endpoints: list[str] | None) -> list[KmsKey]:
    arns, endpoints = arns or [], endpoints or []
    if endpoints and len(endpoints) != len(arns):
        raise BackupError("There is not one --kms-endpoint for each --kms.", mend="Give as many, in the same order.")
    addresses: list[str | None] = [*endpoints] or [None] * len(arns)
    return [KmsKey.of_arn(arn, endpoint_url=address) for arn, address in zip(arns, addresses, strict=True)]


def _passphrase(file: Path | None, *, confirm: bool) -> str:
    if file is not None:
        lines = file.read_text("utf-8").splitlines()
        return lines[0] if lines else ""
    return os.environ.get(PASSPHRASE_VARIABLE) or str(
        typer.prompt("Passphrase", hide_input=True, confirmation_prompt=confirm, err=True)
    )


def _create(path: Path, content: bytes) -> None:
    try:
        create_file(path, content)
    except FileExistsError:
        raise NotWritten(f"{path} exists already.", mend="Name a new file, or move that one away first.") from None
