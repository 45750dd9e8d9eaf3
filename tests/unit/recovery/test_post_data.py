"""Which steps of post-data run side by side, by PostgreSQL's own lists."""

from __future__ import annotations

from include.recovery.post_data import in_turn, indexes_of, upgrading

LIST = """;
; Selected TOC Entries:
;
3369; 1262 5 DATABASE - postgres postgres
3212; 2606 16388 CONSTRAINT public a a_pkey postgres
3210; 1259 16399 INDEX public plain postgres
3213; 1259 16389 INDEX public clustered postgres
3222; 0 0 INDEX ATTACH public child_key postgres
;	depends on: 3212 3210
3240; 0 16404 MATERIALIZED VIEW public late postgres
;	depends on: 3212
3241; 1259 16408 INDEX public late_index postgres
;	depends on: 3240
3242; 1259 16409 INDEX public of_another postgres
;	depends on: 217 3212
3243; 2606 16410 CONSTRAINT public late late_index_key postgres
;	depends on: 3241
3359; 2618 16403 RULE public v _RETURN postgres
;	depends on: 3212
3216; 2606 16394 FK CONSTRAINT public b b_id_fkey postgres
;	depends on: 3212
3209; 3466 16410 EVENT TRIGGER - EVENT TRIGGER postgres
3210; 0 0 COMMENT - EVENT TRIGGER watch postgres
3363; 0 16404 MATERIALIZED VIEW DATA public mv postgres
;	depends on: 217 3365
""".splitlines()


def numbers(lines: list[str]) -> list[int]:
    return [int(line.partition(";")[0]) for line in lines]


def test_what_locks_one_table_and_needs_nothing_else_runs_side_by_side() -> None:
    turns = in_turn(LIST, apart=[LIST[6]])

    assert numbers(turns.side_by_side) == [3212, 3210, 3242]
    assert numbers(turns.one_by_one) == [3369, 3213, 3222, 3240, 3241, 3243, 3359, 3216]
    assert numbers(turns.refreshed) == [3363]
    assert numbers(turns.awake) == [3209, 3210]
    assert numbers(indexes_of(LIST)) == [3210, 3213, 3241, 3242]


def test_an_index_that_goes_on_to_change_its_table_is_known_by_its_statements() -> None:
    indexes = ["1; 1259 1 INDEX public x postgres", "2; 1259 2 INDEX public y postgres", "3; 1259 3 INDEX public z p"]
    statements = [
        "SELECT pg_catalog.set_config('search_path', '', false);",
        "CREATE UNIQUE INDEX x ON public.a USING btree (o);",
        "ALTER TABLE public.a CLUSTER ON x;",
        "CREATE INDEX y ON public.a USING btree (o);",
        "ALTER INDEX public.y ALTER COLUMN 1 SET STATISTICS 100;",
        'CREATE INDEX "ALTER TABLE " ON public.a USING btree (o);',
        "ALTER TABLE ONLY public.a REPLICA IDENTITY USING INDEX z;",
    ]
    assert upgrading(indexes, statements) == [indexes[0], indexes[2]]
