-- An operator's reset is carried out once, and the generation kept for rollback has an end.

-- Kafka's tool writes the same commit for the same reset. So each is named in Kafka with the epoch
-- before it, and is done once a reset of that epoch or a later one is on record.
alter table throughline.projection_resets add column epoch bigint;
alter table throughline.projection_resets drop constraint projection_resets_direction_check;
alter table throughline.projection_resets
    add constraint projection_resets_direction_check check (direction in ('backward', 'forward', 'current'));
create index projection_resets_epoch on throughline.projection_resets (projection, partition, epoch);
comment on column throughline.projection_resets.epoch is 'The checkpoint''s epoch until then; carrying out raised it';

-- Drops the previous generations that were switched away from longer than keep ago. Returns the
-- projections' names. Gives up at once (lock_timeout) rather than queue behind a reader, and leaves
-- a projection alone that is being rebuilt, rolled back or replayed.
create function throughline.drop_previous_generations(keep interval) returns setof text
language plpgsql security definer set search_path = pg_catalog set lock_timeout = '200ms' as $$
declare
    old record;
    relation record;
begin
    for old in
        select name from throughline.projections
        where previous_version is not null and switched_at < now() - keep
    loop
        continue when not pg_try_advisory_xact_lock(hashtext('throughline.rebuild'), hashtext(old.name));
        begin
            -- Looked at again under the lock: a rollback may have made it the live one.
            perform from throughline.projections
            where name = old.name and previous_version is not null and switched_at < now() - keep for update;
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
            return next old.name;
        exception when lock_not_available or deadlock_detected or dependent_objects_still_exist then
            raise notice 'the previous generation of % is in use; it is dropped at a later turn', old.name;
        end;
    end loop;
end $$;
revoke all on function throughline.drop_previous_generations(interval) from public;
grant execute on function throughline.drop_previous_generations(interval) to throughline_maintenance;
