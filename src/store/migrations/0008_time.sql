-- Clocks are set, partitions of time are made beside running transactions, and nothing that is kept for a
-- time goes because a clock says so.

-- Time that was seen to pass. Each process that keeps house measures with its own monotonic clock how long
-- ago it read `elapsed`, and raises it to what it read plus that, never lowers it. Any one process's claim
-- is at most what really passed since its reading, so the greatest of them is, too: however many
-- processes keep house, and whatever any clock is set to, `elapsed` never runs ahead of real time. Where
-- nobody keeps house it stands still, and things are kept for longer.
create table throughline.clock (
    one_row boolean  primary key default true check (one_row),
    elapsed interval not null default '0'
);
insert into throughline.clock default values;

-- Since when (by `elapsed`) a thing is as it is. What must be kept for a time is dropped once the clock
-- says that its time is over *and* it was seen unchanged for as long. A clock that leaps forty days ahead
-- meets only the first; a clock alone therefore deletes nothing.
create table throughline.unchanged (
    thing text     primary key,
    state text     not null,
    since interval not null
);

create function throughline.pass_time(seen interval, passed interval) returns interval
language sql security definer set search_path = pg_catalog as $$
    update throughline.clock set elapsed = greatest(elapsed, seen + passed) returning elapsed;
$$;

create function throughline.unchanged_for(what text, is_now text) returns interval
language sql set search_path = pg_catalog as $$
    insert into throughline.unchanged as known (thing, state, since) select what, is_now, elapsed from throughline.clock
    on conflict (thing) do update set state = excluded.state, since = excluded.since where known.state <> excluded.state;
    select c.elapsed - u.since from throughline.unchanged u, throughline.clock c where u.thing = what;
$$;

-- A lease is believed from when it was given until it ends. One that ends further ahead than it was given
-- for was dated by a clock that has been set back since; a small step, of up to its own length, is
-- tolerated. renewed_at is null where a release before this one wrote it: then the end alone counts.
alter table throughline.relay_leases add column renewed_at timestamptz;
alter table throughline.relay_members add column renewed_at timestamptz;

create function throughline.holds(renewed_at timestamptz, expires_at timestamptz) returns boolean
language sql stable as $$
    select case when expires_at <= now() then false
                when renewed_at is null then true
                else expires_at - now() < 2 * (expires_at - renewed_at) end
$$;

-- The time partitions of a table, with their bounds.
create function throughline.spans(parent text)
returns table (child oid, name name, lower_bound timestamptz, upper_bound timestamptz)
language sql stable set search_path = pg_catalog set timezone = 'UTC' set datestyle = 'ISO' as $$
    select c.oid, c.relname,
           (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''([^'']+)''\)'))[1]::timestamptz,
           (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \(''([^'']+)''\)'))[1]::timestamptz
    from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = ('throughline.' || parent)::regclass
$$;

-- Up to when rows can be written from now on, without a hole; null if they cannot now.
create function throughline.covered_until(parent text) returns timestamptz
language plpgsql stable security definer set search_path = pg_catalog as $$
declare
    place timestamptz := now();
    known record;
begin
    for known in select * from throughline.spans(parent) where upper_bound > now() order by lower_bound loop
        exit when known.lower_bound > place;
        place := known.upper_bound;
    end loop;
    return nullif(place, now());
end $$;

-- Makes `child` a partition of `parent`. The check says what the bounds will, so that a table with rows need
-- not be read under the lock; attaching takes SHARE UPDATE EXCLUSIVE on the parent, which neither readers
-- nor writers hold up, nor are held up by.
create function throughline.attach_span(parent text, child text, lower_bound timestamptz, upper_bound timestamptz)
returns void language plpgsql set search_path = pg_catalog as $$
declare
    moment text := case parent when 'outbox' then 'created_at' else 'decided_at' end;
begin
    execute format('alter table throughline.%I add constraint within_span check (%I >= %L and %I < %L)',
                   child, moment, lower_bound, moment, upper_bound);
    execute format('alter table throughline.%I attach partition throughline.%I for values from (%L) to (%L)',
                   parent, child, lower_bound, upper_bound);
    execute format('alter table throughline.%I drop constraint within_span', child);
end $$;

-- Where the partitions begin that are made and not dropped: a width before the one of now.
create function throughline.first_span(width interval) returns timestamptz
language sql stable set search_path = pg_catalog as $$
    select date_bin(width, now(), '2000-01-01 00:00:00+00') - width
$$;

-- Makes what lacks in [now - one width, now + ahead widths], whatever widths were set before: a hole is
-- filled by a partition that fits it. Names carry the lower bound in UTC. Returns how many were made; stops
-- at the first lock that is refused, and the next turn goes on (lock_timeout; nothing queues behind us).
--
-- `create table ... partition of` would do it in one statement, under ACCESS EXCLUSIVE on the parent: it
-- waits for whoever reads, a backup for hours, and every writer waits behind it.
create or replace function throughline.create_time_partitions(parent text, width interval, ahead int)
returns int language plpgsql security definer
set search_path = pg_catalog set lock_timeout = '200ms' set timezone = 'UTC' set datestyle = 'ISO' as $$
declare
    place   timestamptz := throughline.first_span(width);
    goal    timestamptz := place + (ahead + 2) * width;
    reached timestamptz;
    known   record;
    child   text;
    created int := 0;
begin
    if parent not in ('outbox', 'commands') then
        raise exception 'throughline.% is not partitioned by time', parent;
    end if;
    begin
        perform pg_advisory_xact_lock(hashtext('throughline.time_partitions'));
    exception when lock_not_available then
        return 0; -- Somebody else makes them.
    end;
    -- What there is, in order, and the end of the window: before each of them there may be a hole.
    for known in
        select lower_bound, upper_bound from throughline.spans(parent) where upper_bound > place and lower_bound < goal
        union all select goal, goal order by 1
    loop
        while place < known.lower_bound loop
            reached := least(date_bin(width, place, '2000-01-01 00:00:00+00') + width, known.lower_bound);
            child := parent || '_' || to_char(place, 'YYYYMMDD"T"HH24MISS');
            begin
                execute format('create table throughline.%I (like throughline.%I including all)', child, parent);
                perform throughline.attach_span(parent, child, place, reached);
            exception when lock_not_available or deadlock_detected then
                raise notice 'partition % could not be made beside what is running; it is made at a later turn', child;
                return created;
            end;
            created := created + 1;
            place := reached;
        end loop;
        place := greatest(place, known.upper_bound);
    end loop;
    return created;
end $$;

-- Drops the outbox partitions that are not made any more and hold no row beyond the relay's watermark. Dropping
-- locks the parent against everybody: at the first refusal (lock_timeout) the turn is over. The defaults are
-- for programs of before, which give no width.
drop function throughline.drop_published_outbox();
create function throughline.drop_published_outbox(width interval default '30 min') returns setof text
language plpgsql security definer set search_path = pg_catalog set lock_timeout = '200ms' as $$
declare
    old record;
    pending boolean;
    is_pending text := 'select exists (select from throughline.relay_leases l where exists (
        select from throughline.%I o
        where o.partition = l.partition and o.topic = l.topic and o.seq > l.published))';
begin
    if not pg_try_advisory_xact_lock(hashtext('throughline.time_partitions')) then
        return;
    end if;
    for old in
        select name from throughline.spans('outbox')
        where upper_bound <= throughline.first_span(width) order by lower_bound
    loop
        -- A first look without any lock, so that the lock is only asked for when it will be used.
        execute format(is_pending, old.name) into pending;
        continue when pending;
        begin
            -- Dropping a partition locks its parent too; the parent first, as writers do.
            lock table only throughline.outbox in access exclusive mode;
            execute format('lock table throughline.%I in access exclusive mode', old.name);
            -- Again, under the lock: a writer that was still open has ended, and what it wrote is seen.
            execute format(is_pending, old.name) into pending;
            if not pending then
                execute format('drop table throughline.%I', old.name);
                return next old.name;
            end if;
        exception when lock_not_available or deadlock_detected then
            raise notice 'outbox partition % is in use; it is dropped at a later turn', old.name;
            return;
        end;
    end loop;
end $$;

-- A destination partition that is not published would keep every outbox partition of its time, with all
-- that others have published long ago. Where others are through with a time partition, at least as
-- many as are not, its unpublished rows alone are kept: copied aside, and put in its place in the same
-- transaction. So what a stopped partition keeps is its own backlog. One a turn; one that was thinned
-- out (_held) is left until it can be dropped. Returns the name of the new one.
--
-- Rows are copied under SHARE on that partition: its time is over by a width, so nobody writes there, and
-- the relay reads on. Only the exchange itself locks the parent, and is given up when it is refused.
create function throughline.hold_unpublished_outbox(width interval) returns setof text
language plpgsql security definer set search_path = pg_catalog set lock_timeout = '200ms' as $$
declare
    old record;
    held text;
    waiting int;
    through int;
begin
    if not pg_try_advisory_xact_lock(hashtext('throughline.time_partitions')) then
        return;
    end if;
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
            execute format('lock table throughline.%I in share mode', old.name);
            execute format('create table throughline.%I (like throughline.outbox including all)', held);
            execute format('
                insert into throughline.%I
                select o.* from throughline.relay_leases l join throughline.%I o using (partition, topic)
                where o.seq > l.published', held, old.name);
            lock table only throughline.outbox in access exclusive mode;
            execute format('drop table throughline.%I', old.name);
            perform throughline.attach_span('outbox', held, old.lower_bound, old.upper_bound);
            return next held;
        exception when lock_not_available or deadlock_detected then
            raise notice 'outbox partition % is in use; it is thinned out at a later turn', old.name;
        end;
        return;
    end loop;
end $$;

-- Drops the outcome partitions that ended longer than keep ago, and into which nothing was written for as
-- long by time that passed. What was written there shows in counters that only grow (a crash sets one of
-- them back, which counts as a change).
drop function throughline.drop_old_commands(interval);
create function throughline.drop_old_commands(keep interval, width interval default '10 days') returns setof text
language plpgsql security definer set search_path = pg_catalog set lock_timeout = '200ms' as $$
declare
    old record;
    quiet interval;
begin
    if not pg_try_advisory_xact_lock(hashtext('throughline.time_partitions')) then
        return;
    end if;
    for old in select * from throughline.spans('commands') order by lower_bound loop
        quiet := throughline.unchanged_for('outcomes ' || old.name,
            format('%s rows, %s bytes', pg_stat_get_tuples_inserted(old.child), pg_relation_size(old.child)));
        continue when quiet < keep or old.upper_bound >= least(now() - keep, throughline.first_span(width));
        begin
            execute format('drop table throughline.%I', old.name);
            delete from throughline.unchanged where thing = 'outcomes ' || old.name;
            return next old.name;
        exception when lock_not_available or deadlock_detected then
            raise notice 'commands partition % is in use; it is dropped at a later turn', old.name;
            return;
        end;
    end loop;
end $$;

-- Drops the previous generations that were switched away from longer than keep ago, by the clock and by
-- time that passed. Returns the projections' names. Leaves alone what is being rebuilt, rolled back or
-- replayed, and gives up at once (lock_timeout) rather than queue behind a reader.
create or replace function throughline.drop_previous_generations(keep interval) returns setof text
language plpgsql security definer set search_path = pg_catalog set lock_timeout = '200ms' as $$
declare
    old record;
    relation record;
    kept interval;
begin
    for old in select name, switched_at from throughline.projections where previous_version is not null loop
        kept := throughline.unchanged_for('previous tables of ' || old.name, coalesce(old.switched_at::text, ''));
        continue when kept < keep or old.switched_at >= now() - keep;
        continue when not pg_try_advisory_xact_lock(hashtext('throughline.rebuild'), hashtext(old.name));
        begin
            -- Looked at again under the lock: a rollback may have made it the live one.
            perform from throughline.projections
            where name = old.name and previous_version is not null and switched_at = old.switched_at for update;
            continue when not found;
            for relation in
                select c.relname, case c.relkind when 'v' then 'view' else 'table' end as kind
                from throughline.projections p join pg_class c on c.relname = any(p.previous_relations)
                where p.name = old.name and c.relnamespace = 'read_previous'::regnamespace order by 2 desc
            loop
                execute format('drop %s read_previous.%I', relation.kind, relation.relname);
            end loop;
            delete from throughline.checkpoints where projection = old.name and generation = 'read_previous';
            update throughline.projections set previous_version = null, previous_relations = '{}', updated_at = now()
            where name = old.name;
            delete from throughline.unchanged where thing = 'previous tables of ' || old.name;
            return next old.name;
        exception when lock_not_available or deadlock_detected or dependent_objects_still_exist then
            raise notice 'the previous generation of % is in use; it is dropped at a later turn', old.name;
        end;
    end loop;
end $$;

revoke all on function throughline.pass_time(interval, interval), throughline.unchanged_for(text, text),
    throughline.spans(text), throughline.covered_until(text), throughline.first_span(interval),
    throughline.drop_published_outbox(interval), throughline.drop_old_commands(interval, interval),
    throughline.hold_unpublished_outbox(interval), throughline.attach_span(text, text, timestamptz, timestamptz), throughline.holds(timestamptz, timestamptz) from public;
grant execute on function throughline.pass_time(interval, interval), throughline.covered_until(text),
    throughline.drop_published_outbox(interval), throughline.drop_old_commands(interval, interval),
    throughline.hold_unpublished_outbox(interval) to throughline_maintenance;
grant execute on function throughline.holds(timestamptz, timestamptz) to throughline_relay, throughline_reader;
-- A writer whose rows have no partition, since the clock was set, makes it and goes on.
grant execute on function throughline.create_time_partitions(text, interval, int) to throughline_writer;
