-- The events, a table for each destination partition. Reads and writes of one partition touch its own heap and
-- indexes alone, which stay small enough for the cache; vacuum and freezing go by the child.
--
-- What is stored moves: it is read once, written once and indexed by sorting, under a lock that holds up
-- everybody who uses events. Both copies are on the disk until the commit.

lock table throughline.events in access exclusive mode;
alter table throughline.events rename to events_in_one_table;
create table throughline.events (like throughline.events_in_one_table including defaults including comments)
    partition by list (partition);
comment on table throughline.events is 'What happened, for ever; a child a destination partition';

-- Makes the children of destination partitions 0 to count - 1 that lack.
create function throughline.create_event_partitions(count int) returns void
language plpgsql set search_path = pg_catalog as $$
declare
    child text;
begin
    -- Registrations at the same time, of several starts, go one after the other.
    perform pg_advisory_xact_lock(hashtext('throughline.event_partitions'));
    for number in 0 .. count - 1 loop
        child := 'events_' || number;
        continue when to_regclass('throughline.' || child) is not null;
        -- Apart, and then attached: that waits for no reader, and no writer waits for it.
        execute format('create table throughline.%I (like throughline.events including all)', child);
        execute format('alter table throughline.events attach partition throughline.%I for values in (%s)', child, number);
        -- Triggers for rows come with the parent's, those for statements do not.
        execute format('create trigger events_are_never_truncated before truncate on throughline.%I
                        for each statement execute function throughline.refuse_change()', child);
    end loop;
end $$;
revoke all on function throughline.create_event_partitions(int) from public;

select throughline.create_event_partitions(coalesce(
    (select max(count) from (select partitions from throughline.topics
                             union all select max(partition) + 1 from throughline.events_in_one_table) as known (count)), 0));
insert into throughline.events select * from throughline.events_in_one_table;
-- Whoever might use the table, or columns of it, may use this one; nobody has a right to a child.
do $$
declare
    given record;
begin
    for given in
        select a.grantee, a.privilege_type, a.is_grantable, null as of_column, c.relowner
        from pg_class c, aclexplode(c.relacl) a where c.oid = 'throughline.events_in_one_table'::regclass
        union all
        select a.grantee, a.privilege_type, a.is_grantable, quote_ident(t.attname), c.relowner
        from pg_class c join pg_attribute t on t.attrelid = c.oid, aclexplode(t.attacl) a
        where c.oid = 'throughline.events_in_one_table'::regclass
    loop
        continue when given.grantee = given.relowner;
        execute format('grant %s%s on throughline.events to %s%s', given.privilege_type, '(' || given.of_column || ')',
                       case given.grantee when 0 then 'public' else given.grantee::regrole::text end,
                       case when given.is_grantable then ' with grant option' end);
    end loop;
end $$;
drop table throughline.events_in_one_table;

alter table throughline.events
    add primary key (partition, topic, seq),
    add unique (partition, topic, stream_id, version);
create trigger events_are_immutable before update or delete on throughline.events
    for each row execute function throughline.refuse_change();
create trigger events_are_never_truncated before truncate on throughline.events
    for each statement execute function throughline.refuse_change();
