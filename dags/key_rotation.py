"""The rotation of the keys of Synapse's backups (R7.1): yearly by itself, or whenever it is asked for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, CronDataIntervalTimetable, Param, TriggerRule

from include.operators.keys import DUE, CheckKeys, MakeKeys, ProveWraps, ReportRotation, RetireKey, WrapDataKeys
from include.operators.report import WATCHER, Delivered, Watcher
from include.policy import load_policy

policy = load_policy()

LONG = timedelta(hours=4)
params = {
    "kinds": Param(
        DUE,
        enum=[DUE, "kek", "signing", "both"],
        title="Which keys",
        description_md="`due`: those that are as old as the policy's `keys.rotation`, as on every day. Else a new "
        "key-encryption key, a new signing key, or both, **now**.",
    ),
    "kms": Param(
        [],
        type="array",
        items={"type": "string", "pattern": "^arn:[a-z-]+:kms:"},
        title="New keys of AWS KMS",
        description_md="Where KMS has the key-encryption keys: the ARN of a new key in each region. Else empty.",
    ),
    "retire": Param(
        "",
        type=["null", "string"],
        pattern=r"^((kek|sign)-\S+)?$",
        title="Key to retire",
        description_md="The id of an old key, as `python -m include.cli keyring show` names it; empty: none. It goes "
        "only when it is proved that nothing needs it.",
    ),
}

with DAG(
    dag_id="key_rotation",
    description="Keys of the backups: new ones yearly, one more wrap of every data key in both regions, proved",
    doc_md=f"""
    ### Key rotation (R7.1)

    Every day it looks whether a key is older than `keys.rotation` ({policy.keys.rotation}) and whether every data key
    in both regions has a wrap by the newest key. On most days there is nothing to do, and nobody is told.

    1. **check**: which keys are due or were asked for; whether this worker may replace the keyring file.
    2. **new_keys** puts them into the file, beside the old ones, which go on for `keys.handover`
       ({policy.keys.handover}): *within it the new file must reach every worker* and the escrow.
    3. **wrap_primary**, **wrap_replica**: one more wrap of each data key; nothing is encrypted anew, nothing removed.
    4. **prove_primary**, **prove_replica**: every data key opens with the newest keys *alone*.
    5. **retire**: only when the form names a key, and nothing needs it.
    6. **report**: what was made, wrapped, retired; what to do.

    **It is red?** Every backup is as readable as it was. Open the first red task: its log ends with *what happened* and
    *how to mend it*, and its button **Runbook** leads to what helps. *Clear* it: it goes on where it was.

    **Retire an old key?** *Trigger* it with the key's id, after the handover. Until then it opens what it wrapped.
    """,
    schedule=CronDataIntervalTimetable(policy.keys.schedule, timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    params=params,
    tags=["keys", "R7.1"],
    default_args={"owner": "backup"},
) as dag:
    check = CheckKeys(task_id="check", doc_md="**R7.1** Which keys are due or asked for, and whether they can be made.")
    new_keys = MakeKeys(
        task_id="new_keys",
        doc_md="**R7.1** New keys in the keyring file, written beside and renamed; what was there is kept as a copy. "
        "A rotation that is under way is gone on with: no second key is made.",
    )
    wrap_primary = WrapDataKeys(
        task_id="wrap_primary",
        store="primary",
        execution_timeout=LONG,
        doc_md="**R7.1** One more wrap of every data key that lacks one, read back and opened with the new key alone.",
    )
    wrap_replica = WrapDataKeys(
        task_id="wrap_replica",
        store="replica",
        execution_timeout=LONG,
        trigger_rule=TriggerRule.ALL_DONE_MIN_ONE_SUCCESS,
        doc_md="**R7.1, R3.2** The same in the second region, with the primary's wraps; also when some were refused.",
    )
    prove_primary = ProveWraps(
        task_id="prove_primary",
        store="primary",
        execution_timeout=LONG,
        doc_md="**R7.1** Every data key opens with each of the newest keys alone, and to the same.",
    )
    prove_replica = ProveWraps(
        task_id="prove_replica", store="replica", execution_timeout=LONG, doc_md="**R7.1, R3.2** The same there."
    )
    retire = RetireKey(
        task_id="retire",
        execution_timeout=LONG,
        doc_md="**R7.1** The key that the form names leaves the keyring, if it is proved that nothing needs it.",
    )
    report = ReportRotation(
        task_id="report",
        buckets=["wrap_primary", "wrap_replica", "prove_primary", "prove_replica"],
        doc_md="**R4.6** What was made and is to be done, or what failed. Silent when there was nothing to do.",
    )
    delivered = Delivered(
        task_id="delivered", reports=["report"], doc_md="Red in a green run: somebody could not be told of it."
    ).as_teardown(on_failure_fail_dagrun=False)
    watcher = Watcher(task_id=WATCHER, doc_md="Fails, and the run with it, when any work failed.")

    check >> new_keys >> wrap_primary >> prove_primary
    [new_keys, wrap_primary] >> wrap_replica >> prove_replica
    [prove_primary, prove_replica] >> retire
    work = [check, new_keys, wrap_primary, wrap_replica, prove_primary, prove_replica, retire]
    work >> report >> delivered
    work >> watcher
