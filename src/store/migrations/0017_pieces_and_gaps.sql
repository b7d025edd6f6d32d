-- What a stopped partition keeps is set apart in bounded pieces, and what the generation kept for rollback lacked
-- when migration 11 was applied is told.

-- Copies unpublished rows of a time partition until there are none left (`finished`), or until `ends`. How far a
-- copy got, its own rows tell: numbers of a destination partition are committed in order, so whatever comes
-- late comes behind the last one copied.
create function throughline.copy_unpublished(source name, copy name, ends timestamptz, out copied bigint, out finished boolean)
language plpgsql set search_path = pg_catalog as $$
declare
    step constant int := 100; -- Rows from one look at the clock to the next.
    lease record;
    rows int;
begin
    copied := 0;
    finished := false;
    for lease in select partition, topic, published from throughline.relay_leases order by topic, partition loop
        loop
            execute format('
                insert into throughline.%I select o.* from throughline.%I o
                where o.partition = $1 and o.topic = $2 and o.seq > greatest($3, (
                    select max(c.seq) from throughline.%I c where c.partition = $1 and c.topic = $2))
                order by o.seq limit $4', copy, source, copy)
                using lease.partition, lease.topic, lease.published, step;
            get diagnostics rows = row_count;
            copied := copied + rows;
            exit when rows < step;
            if clock_timestamp() > ends then
                return;
            end if;
        end loop;
    end loop;
    finished := true;
end $$;

-- One piece of setting unpublished rows apart: about a second, or a quarter of what a statement may take, in a
-- transaction of its own. So any amount is moved by calling again, whoever calls, and a killed caller loses one
-- piece. The copy is no partition until it is complete.
--
-- Nothing is locked while rows are copied. The last of them are under SHARE, which keeps late writers out; only
-- the exchange itself locks the parent, reads no row under it, and is given up when it is refused. Returns the
-- name of the copy, how many rows this piece moved, and whether it took the old one's place; nothing where there
-- is nothing to do, or somebody is in the way.
create function throughline.hold_piece(width interval)
returns table (held text, moved bigint, complete boolean)
language plpgsql security definer
set search_path = pg_catalog set lock_timeout = '200ms' set timezone = 'UTC' set datestyle = 'ISO' as $$
declare
    ends timestamptz := clock_timestamp()
        + least(interval '1 s', nullif(current_setting('statement_timeout')::interval, interval '0') / 4);
    old record;
    left_over name;
    waiting int;
    through int;
    piece record;
begin
    if not pg_try_advisory_xact_lock(hashtext('throughline.time_partitions')) then
        return;
    end if;
    -- Copies of what is gone: it was published meanwhile, and dropped.
    for left_over in
        select c.relname from pg_class c
        where c.relnamespace = 'throughline'::regnamespace and c.relkind = 'r' and c.relname like 'outbox\_%\_held'
          and not c.relispartition and to_regclass(format('throughline.%I', left(c.relname, -5))) is null
    loop
        execute format('drop table throughline.%I', left_over);
    end loop;
    for old in
        select name, lower_bound, upper_bound from throughline.spans('outbox')
        where upper_bound <= throughline.first_span(width) and name not like '%\_held' order by lower_bound
    loop
        execute format('
            select count(*) filter (where last > published), count(*) filter (where last <= published)
            from throughline.relay_leases l cross join lateral (
                select max(seq) as last from throughline.%I o where o.partition = l.partition and o.topic = l.topic) o',
            old.name) into waiting, through;
        continue when waiting = 0 or through < waiting;
        held := old.name || '_held';
        begin
            if to_regclass(format('throughline.%I', held)) is null then
                execute format('create table throughline.%I (like throughline.outbox including all)', held);
                -- Says what the bounds will, so that no row is read when it is attached.
                execute format('alter table throughline.%I add constraint within_span check (created_at >= %L and created_at < %L)',
                               held, old.lower_bound, old.upper_bound);
            end if;
            piece := throughline.copy_unpublished(old.name, held::name, ends);
            moved := piece.copied;
            complete := false;
            if piece.finished then
                execute format('lock table throughline.%I in share mode', old.name);
                piece := throughline.copy_unpublished(old.name, held::name, ends);
                moved := moved + piece.copied;
                complete := piece.finished;
            end if;
            if complete then
                lock table only throughline.outbox in access exclusive mode;
                execute format('drop table throughline.%I', old.name);
                execute format('alter table throughline.outbox attach partition throughline.%I for values from (%L) to (%L)',
                               held, old.lower_bound, old.upper_bound);
                execute format('alter table throughline.%I drop constraint within_span', held);
            end if;
            return next;
        exception when lock_not_available or deadlock_detected then
            raise notice 'outbox partition % is in use; it is thinned out at a later turn', old.name;
        end;
        return;
    end loop;
end $$;

-- For programs of before, which call it once a turn.
create or replace function throughline.hold_unpublished_outbox(width interval) returns setof text
language sql security definer set search_path = pg_catalog as $$
    select held from throughline.hold_piece(width) where complete;
$$;
revoke all on function throughline.hold_piece(interval),
    throughline.copy_unpublished(name, name, timestamptz) from public;
grant execute on function throughline.hold_piece(interval) to throughline_maintenance;

-- A reset after the switch closed letters of events that the generation before lacks for all that. Migration 11
-- told those that were replayed since, and not these; what it did not meet, the program has told itself.
insert into throughline.projection_gaps (projection, generation, partition, from_seq, to_seq, cause)
select c.projection, c.generation, c.partition, d.seq, d.seq, 'parked'
from throughline.checkpoints c
join throughline.projections p on p.name = c.projection
join throughline.dead_letters d on d.kind = 'event' and d.source_partition = c.partition and d.seq <= c.seq
     and d.consumer like '%-projection-' || c.projection
join throughline.migrations m on m.number = 11 and d.closed_at < m.applied_at and p.switched_at < m.applied_at
where c.generation = 'read_previous' and d.status = 'superseded' and d.superseded_by like 'reset %'
  and d.closed_at > p.switched_at and d.parked_at <= p.switched_at
on conflict do nothing;
