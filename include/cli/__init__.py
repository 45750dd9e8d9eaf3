"""The break-glass command line: what is in the bucket, and bringing it back, when Airflow itself is lost.

It needs the bucket, a keyring and, for a restore, somewhere to restore to; credentials come from the usual `AWS_*` and
`PG*` variables. Exit codes: 0 done, 1 failed or refused, 2 wrong usage, 3 no such backup.
"""
