-- What the relay needs beyond its leases: to see how far the store got, to say why it stopped, and
-- outbox partitions that are dropped without a window for loss.

alter table throughline.relay_leases add column halted text;
comment on column throughline.relay_leases.halted is
    'Why the owner stopped publishing this partition, with the next step; null while it goes on';

grant select on throughline.counters to throughline_relay;

-- As before, but the look for unpublished rows is taken under the lock: a writer that was still
-- open when the lock was asked for has ended by then, and what it wrote is seen.
create or replace function throughline.drop_published_outbox() returns setof text
language plpgsql security definer set search_path = pg_catalog set lock_timeout = '200ms' as $$
declare
    child record;
    pending boolean;
    is_pending text := 'select exists (select from throughline.relay_leases l where exists (
        select from throughline.%I o
        where o.partition = l.partition and o.topic = l.topic and o.seq > l.published))';
begin
    for child in
        select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
        where i.inhparent = 'throughline.outbox'::regclass
          and (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \(''([^'']+)''\)'))[1]::timestamptz < now()
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
