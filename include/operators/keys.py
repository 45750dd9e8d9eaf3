"""The steps of a key rotation (R7.1): look, make keys, wrap every data key in both regions, prove it, retire, tell."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

from airflow.sdk import TriggerRule

from include.errors import Hopeless
from include.operators.report import Teller, failures_of, links_of
from include.operators.step import Facts, Step

if TYPE_CHECKING:
    from airflow.sdk import Context

    from include.monitoring.messages import Notification
    from include.operators.run import Surroundings
    from include.pipeline.kms import KmsKey
    from include.pipeline.store import Bucket
    from include.repository.rotation import KeyKind

DUE = "due"
CHECK, MAKE, RETIRE = "check", "new_keys", "retire"
Store = Literal["primary", "replica"]


class OtherKeyring(Hopeless):
    """A worker whose keyring file is not the one that was rotated."""


class KeyStep(Step):
    """One step of a key rotation."""

    @abstractmethod
    def step(self, here: Surroundings, context: Context) -> Facts:
        """Call the engine; returns the facts for the XCom."""

    def _take(self, context: Context) -> Facts:
        from include.operators.run import Surroundings  # noqa: PLC0415 - the engine: over a second

        return self.step(Surroundings(scratch_root=self.scratch_root), context)


class CheckKeys(KeyStep):
    """What is to be done, and whether it can be done on this worker; nothing is made yet."""

    def step(self, here: Surroundings, context: Context) -> Facts:
        """The kinds of which a key is to be made.

        Raises `KeyringFixed` when one is, or a key is to be retired, and this worker may not replace the file.
        """
        from include.pipeline.keyring_file import require_replaceable  # noqa: PLC0415
        from include.pipeline.keys import UnknownKey, keyring_path  # noqa: PLC0415
        from include.repository.rotation import KEY_KINDS, due, under_way  # noqa: PLC0415

        asked, now, keyring = context["params"], datetime.now(UTC), here.keyring
        chosen = {DUE: due(keyring, here.policy.keys, now=now), "both": KEY_KINDS}
        wanted = chosen.get(asked["kinds"], (asked["kinds"],))
        going_on = under_way(keyring, now=now)
        make = [kind for kind in wanted if kind not in going_on]
        if asked["retire"] and asked["retire"] not in keyring.ids:
            raise UnknownKey(
                f"{asked['retire']} is not in the keyring.", mend=f"It holds {', '.join(sorted(keyring.ids))}."
            )
        if make or asked["retire"]:
            require_replaceable(keyring_path())
        if going_on:
            self.log.info("Under way already: %s. No second one is made.", ", ".join(going_on))
        return {"make": make, "keks": list(keyring.current_keks), "signing_key": keyring.current_signing_key}


class MakeKeys(KeyStep):
    """Put the new keys into the keyring file, which every worker must have within the policy's `keys.handover`."""

    def step(self, here: Surroundings, context: Context) -> Facts:
        """What was made, and the KEKs by which every data key must be wrapped from now on."""
        from include.pipeline.keys import keyring_path  # noqa: PLC0415
        from include.repository.rotation import make_keys  # noqa: PLC0415

        kinds = cast("list[KeyKind]", _told_by(context, CHECK)["make"])
        made: tuple[str, ...] = ()
        if kinds:
            kms = _kms(context["params"]["kms"], here)
            made = make_keys(keyring_path(), kinds, here.policy.keys, kms=kms, sessions=here.sessions)
        if made:
            self.log.warning("Bring the new keyring file to every worker within %s.", here.policy.keys.handover)
        return {"made": list(made), "keks": list(here.keyring.lasting_keks)}  # read now, as the others will


class BucketStep(KeyStep):
    """A step that goes through one bucket.

    :param store: `primary` or `replica`.
    """

    def __init__(self, *, store: Store, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.store = store

    @abstractmethod
    def through(self, bucket: Bucket, here: Surroundings, *, primary: Bucket | None) -> Facts:
        """Call the engine; of the replica, the primary's wraps are its wraps, too."""

    def step(self, here: Surroundings, context: Context) -> Facts:
        """What was found and done.

        Raises `OtherKeyring` when the new keys are not in the file that this worker has, and `NotWrapped`, naming the
        first, when all others are done.
        """
        needed = _told_by(context, MAKE)["keks"]
        lacking = [kek for kek in needed if kek not in here.keyring.keks]
        if lacking:
            raise OtherKeyring(
                f"The keyring of this worker does not hold {', '.join(lacking)}, which another worker made.",
                mend="Have all workers read one file (a shared mount), or bring it to this one; then clear this task.",
            )
        if self.store == "replica":
            return self.through(here.replica.bucket, here, primary=here.catalog.bucket)
        return self.through(here.catalog.bucket, here, primary=None)


class WrapDataKeys(BucketStep):
    """One more wrap of every data key in a bucket that lacks one by the newest keys, each read back and proved."""

    def through(self, bucket: Bucket, here: Surroundings, *, primary: Bucket | None) -> Facts:
        """How many there are, and how many wraps were made."""
        from include.repository.rotation import wrap_all  # noqa: PLC0415

        done = wrap_all(bucket, here.keyring, primary=primary)
        done.require(bucket)
        return {"bucket": str(bucket), "data_keys": done.data_keys, "wrapped": done.wraps}


class ProveWraps(BucketStep):
    """Every data key in a bucket opens with each of the newest keys alone, and to the same."""

    def through(self, bucket: Bucket, here: Surroundings, *, primary: Bucket | None) -> Facts:
        """How many were proved."""
        from include.repository.rotation import prove_all  # noqa: PLC0415

        done = prove_all(bucket, here.keyring, primary=primary)
        done.require(bucket)
        return {"bucket": str(bucket), "data_keys": done.data_keys, "proved": done.wraps}


class RetireKey(KeyStep):
    """Take the key that the form names out of the keyring, when it is proved that nothing needs it."""

    def step(self, here: Surroundings, context: Context) -> Facts:
        """The key; nothing when none was named. Raises `StillNeeded`, naming why."""
        from include.pipeline.keys import keyring_path  # noqa: PLC0415
        from include.repository.rotation import retire  # noqa: PLC0415

        key = context["params"]["retire"]
        if not key:
            return {"retired": ""}
        if key in here.keyring.ids:  # else an earlier try did it: it was there when the run began
            buckets = (here.catalog.bucket, here.replica.bucket)
            retire(keyring_path(), key, buckets, here.policy.keys, sessions=here.sessions)
        return {"retired": key}


class ReportRotation(Teller):
    """Tell what was made, wrapped or retired, or what failed; a day on which nothing was to be done is told to nobody.

    :param buckets: the tasks that went through the buckets.
    """

    def __init__(self, *, buckets: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**{"trigger_rule": TriggerRule.ALL_DONE, **kwargs})
        self.buckets = tuple(buckets)

    def _take(self, context: Context) -> Facts:
        from include.operators.run import Surroundings  # noqa: PLC0415

        here = Surroundings(scratch_root=self.scratch_root)
        if not failures_of(context) and not self._happened(context):
            self.log.info("No key is due, and every data key has its wraps: nobody is told.")
            return {"told": [], "untold": {}}
        return self.tell(here.policy, partial(self._words, here, context))

    def _happened(self, context: Context) -> bool:
        made, retired = _told_by(context, MAKE) or {}, _told_by(context, RETIRE) or {}
        wrapped = any((_told_by(context, task) or {}).get("wrapped") for task in self.buckets)
        return bool(made.get("made") or retired.get("retired") or wrapped)

    def _words(self, here: Surroundings, context: Context) -> Notification:
        from include.monitoring.messages import Notification  # noqa: PLC0415

        failures = failures_of(context)
        made, retired = _told_by(context, MAKE) or {}, _told_by(context, RETIRE) or {}
        facts: dict[str, object] = {}
        if made.get("made"):
            facts["new keys"] = ", ".join(made["made"])
            within = here.policy.keys.handover
            facts["to do"] = f"bring the new keyring file to every worker and to its escrow within {within}"
        for task in self.buckets:
            found = _told_by(context, task) or {}
            facts |= {task: ", ".join(f"{name} {found[name]}" for name in sorted(found))} if found else {}
        if retired.get("retired"):
            facts["retired"] = retired["retired"]
        links = links_of(context, failures[0].task if failures else "")
        return Notification("run_failed" if failures else "rotated", "Key rotation", facts, failures, links)


def _told_by(context: Context, task: str) -> Any:
    return context["ti"].xcom_pull(task_ids=task)


def _kms(arns: Sequence[str], here: Surroundings) -> list[KmsKey]:
    from include.pipeline.kms import KmsKey  # noqa: PLC0415

    return [KmsKey.of_arn(arn, sessions=here.sessions) for arn in arns]
