-- Least privilege: one group role a loop; connections take theirs with SET ROLE. Roles belong to
-- the cluster, so another database (or a parallel run) may have made them first.
do $$
declare
    wanted text;
begin
    foreach wanted in array array['throughline_writer', 'throughline_relay', 'throughline_projector', 'throughline_reader', 'throughline_maintenance'] loop
        begin
            if not exists (select from pg_roles where rolname = wanted) then
                execute format('create role %I nologin', wanted);
            end if;
        exception when duplicate_object or unique_violation then
            null;
        end;
        if not pg_has_role(current_user, wanted, 'member') then
            execute format('grant %I to current_user', wanted);
        end if;
    end loop;
end $$;

grant usage on schema throughline to
    throughline_writer, throughline_relay, throughline_projector, throughline_reader, throughline_maintenance;

-- The processor appends; it moves counters and offsets and nothing else.
grant select, insert on throughline.events, throughline.outbox, throughline.commands to throughline_writer;
grant select, insert, update on throughline.offsets, throughline.snapshots to throughline_writer;
grant delete on throughline.snapshots to throughline_writer;
grant select, update on throughline.counters to throughline_writer;
grant select, insert on throughline.dead_letters to throughline_writer;
grant select on throughline.topics, throughline.schemas, throughline.relay_leases to throughline_writer;

-- The relay reads the outbox and moves its watermark.
grant select on throughline.outbox, throughline.topics, throughline.schemas to throughline_relay;
grant select, update on throughline.relay_leases to throughline_relay;
grant select, insert, update, delete on throughline.relay_members to throughline_relay;
grant select, insert on throughline.dead_letters to throughline_relay;

-- Projectors own their read tables and checkpoints.
grant usage on schema read, read_next, read_previous to throughline_projector, throughline_reader;
grant select, insert, update, delete on throughline.checkpoints, throughline.projections to throughline_projector;
grant select, insert, update on throughline.dead_letters to throughline_projector;
grant select on throughline.events, throughline.topics, throughline.schemas, throughline.counters to throughline_projector;

-- The API reads read tables, outcomes and checkpoints. Never events of the write side.
grant select on throughline.commands, throughline.checkpoints, throughline.topics, throughline.schemas,
    throughline.offsets, throughline.relay_leases, throughline.counters to throughline_reader;

grant execute on function throughline.create_time_partitions(text, interval, int),
    throughline.drop_published_outbox(), throughline.drop_old_commands(interval) to throughline_maintenance;
