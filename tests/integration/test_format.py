"""A second client, written from docs/format.md alone: nothing of the project is imported to read the backup."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from include.repository.manifest import Manifest
from include.sandbox.installation import Installation
from include.sandbox.s3 import S3Server

SECOND_CLIENT = textwrap.dedent(
    """
    import base64, hashlib, io, json, pathlib, sys
    from backports import zstd
    from cryptography.cobblestone import Cobblestone256Decryptor
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    bucket, keyring_path, manifest_key, artifact_name, key_of_object = sys.argv[1:]
    bucket = pathlib.Path(bucket)
    keyring = json.loads(pathlib.Path(keyring_path).read_text())

    def canonical(value):
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    manifest = json.loads((bucket / manifest_key).read_bytes())
    signature = manifest.pop("signature")
    public = next(key["public"] for key in keyring["signing_keys"] if key["id"] == signature["key"])
    Ed25519PublicKey.from_public_bytes(base64.b64decode(public)).verify(
        base64.b64decode(signature["ed25519"]), b"synapse-backups manifest 1\\n" + canonical(manifest)
    )
    assert manifest["format"] == 1
    assert manifest_key == "manifests/%s/%s.json" % (manifest["type"], manifest["id"])

    def data_key(owner, attempt):
        kek = keyring["keks"][0]
        envelope = json.loads((bucket / "keys" / owner / attempt / (kek["id"] + ".json")).read_bytes())
        wrapped = base64.b64decode(envelope["wrapped_key"])
        about = canonical({"attempt": attempt, "kek": kek["id"], "owner": owner})
        return AESGCM(base64.b64decode(kek["key"])).decrypt(wrapped[:12], wrapped[12:], about)

    def opened(stored, key, context):
        stream = Cobblestone256Decryptor(key, canonical(context))
        compressed = stream.update(stored) + stream.finalize()
        return zstd.decompress(compressed)

    def artifact(name):
        entry = next(each for each in manifest["artifacts"] if each["name"] == name)
        key = data_key(manifest["id"], entry["attempt"])
        raw = b""
        for number, segment in enumerate(entry["segments"]):
            stored = (bucket / segment["key"]).read_bytes()
            assert hashlib.sha256(stored).hexdigest() == segment["stored_sha256"]
            piece = opened(stored, key, {
                "artifact": name, "attempt": entry["attempt"], "backup": manifest["id"],
                "component": entry["component"], "retention_class": entry["retention_class"], "segment": number,
            })
            assert hashlib.sha256(piece).hexdigest() == segment["raw_sha256"]
            raw += piece
        return raw

    def content_of(key_of_object):
        for name in [each["name"] for each in manifest["artifacts"] if each["name"].endswith(".index.jsonl")]:
            for line in io.BytesIO(artifact(name)):
                entry = json.loads(line)
                if entry["key"] != key_of_object:
                    continue
                raw = b""
                for member in entry["members"]:
                    pack = next(each for each in manifest["packs"] if each["id"] == member["pack"])
                    stored = (bucket / "packs" / pack["id"]).read_bytes()
                    raw += opened(stored[member["offset"]:][:member["length"]], data_key(pack["id"], pack["attempt"]), {
                        "attempt": pack["attempt"], "component": pack["component"], "member": member["member"],
                        "pack": pack["id"], "retention_class": pack["retention_class"],
                    })
                assert hashlib.sha256(raw).hexdigest() == entry["sha256"]
                return raw
        raise SystemExit("no such object")

    raw, content = artifact(artifact_name), content_of(key_of_object)
    print(json.dumps({
        "artifact": base64.b64encode(raw).decode(),
        "object": base64.b64encode(content).decode(),
        "modules": sorted({name.partition(".")[0] for name in sys.modules}),
    }))
    """
)


@pytest.mark.requirement("R2.2", "R7.1")
def test_a_second_client_reads_a_backup_by_the_document(
    installation: Installation, manifest: Manifest, s3_primary: S3Server, tmp_path: Path
) -> None:
    mirror = tmp_path / "mirror"
    _download(installation, mirror)
    uploaded = next(
        entry["Key"]
        for entry in s3_primary.client().list_objects_v2(Bucket=installation.synapse.bucket, Prefix="uploads/")[
            "Contents"
        ]
        if entry["Size"] > 0
    )

    read = subprocess.run(
        [
            *(sys.executable, "-I", "-c", SECOND_CLIENT),
            *(
                str(mirror),
                str(installation.keyring),
                manifest.backup.manifest_key,
                "database/inventory.json",
                uploaded,
            ),
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert read.returncode == 0, read.stderr
    found = json.loads(read.stdout)
    inventory = json.loads(base64.b64decode(found["artifact"]))
    original = s3_primary.client().get_object(Bucket=installation.synapse.bucket, Key=uploaded)["Body"].read()
    assert sum(table["rows"] for table in inventory["tables"].values()) == manifest.database.rows
    assert hashlib.sha256(base64.b64decode(found["object"])).digest() == hashlib.sha256(original).digest()
    assert "include" not in found["modules"]


def _download(installation: Installation, target: Path) -> None:
    """The bucket as files, by a client that is not ours either (R2.2)."""
    server = installation.primary
    credentials = server.session().get_credentials()
    assert credentials is not None
    address = server.endpoint_url.removeprefix("http://")
    settings = target.with_suffix(".s3cfg")
    settings.write_text(
        f"[default]\naccess_key = {credentials.access_key}\nsecret_key = {credentials.secret_key}\n"
        f"host_base = {address}\nhost_bucket = {address}\nuse_https = False\n"
    )
    target.mkdir()
    subprocess.run(
        [
            *(str(Path(sys.executable).with_name("s3cmd")), f"--config={settings}", "--no-progress", "--quiet"),
            *("sync", f"s3://{installation.backups}/", f"{target}/"),
        ],
        check=True,
    )
