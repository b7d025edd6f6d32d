-- Time partitions are dropped by one session at a time: of two starts, the slower one met a table that
-- was gone and failed. And the outbox's last span stays as long as it is made anew for rows that come
-- late; it was made and dropped at every turn, under a lock that holds up all appends.

create or replace function throughline.drop_published_outbox() returns setof text
language plpgsql security definer set search_path = pg_catalog set lock_timeout = '200ms' as $$
declare
    child record;
    pending boolean;
    is_pending text := 'select exists (select from throughline.relay_leases l where exists (
        select from throughline.%I o
        where o.partition = l.partition and o.topic = l.topic and o.seq > l.published))';
begin
    if not pg_try_advisory_xact_lock(hashtext('throughline.time_partitions')) then
        return;
    end if;
    for child in
        select relname from (
            select c.relname,
                   (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''([^'']+)''\)'))[1]::timestamptz as lower_bound,
                   (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \(''([^'']+)''\)'))[1]::timestamptz as upper_bound
            from pg_inherits i join pg_class c on c.oid = i.inhrelid
            where i.inhparent = 'throughline.outbox'::regclass) spans
        where upper_bound + (upper_bound - lower_bound) < now()
    loop
        -- A first look without any lock, so that the lock is only asked for when it will be used.
        execute format(is_pending, child.relname) into pending;
        continue when pending;
        begin
            -- Dropping a partition locks its parent too; the parent first, as writers do.
            lock table only throughline.outbox in access exclusive mode;
            execute format('lock table throughline.%I in access exclusive mode', child.relname);
            execute format(is_pending, child.relname) into pending;
            if not pending then
                execute format('drop table throughline.%I', child.relname);
                return next child.relname;
            end if;
        exception when lock_not_available then
            raise notice 'outbox partition % is in use; it is dropped at the next turn', child.relname;
        end;
    end loop;
end $$;

create or replace function throughline.drop_old_commands(keep interval) returns setof text
language plpgsql security definer set search_path = pg_catalog set lock_timeout = '200ms' as $$
declare
    child record;
begin
    if not pg_try_advisory_xact_lock(hashtext('throughline.time_partitions')) then
        return;
    end if;
    for child in
        select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
        where i.inhparent = 'throughline.commands'::regclass
          and (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \(''([^'']+)''\)'))[1]::timestamptz < now() - keep
    loop
        begin
            execute format('drop table throughline.%I', child.relname);
            return next child.relname;
        exception when lock_not_available then
            raise notice 'commands partition % is in use; it is dropped at the next turn', child.relname;
        end;
    end loop;
end $$;
