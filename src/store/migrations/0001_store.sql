-- The event store, its outbox, and the bookkeeping of every loop.
-- Keys of the write side begin with the destination partition: no transaction needs a row of
-- another partition, so the store can be distributed by it (design decision D13).

create schema if not exists throughline;
create schema if not exists read;
create schema if not exists read_next;
create schema if not exists read_previous;

-- Destination topics. A small id instead of the name keeps the hot keys short.
create table throughline.topics (
    id         smallint primary key generated always as identity,
    name       text     not null unique,
    partitions int      not null check (partitions > 0),
    created_at timestamptz not null default now()
);
comment on table throughline.topics is 'Destination topics; the partition count is fixed at creation';

-- One row per destination partition. Its row lock, held to commit, makes commit order = seq order:
-- the arbiter of all order. HOT updates only, hence the low fillfactor.
create table throughline.counters (
    partition int      not null,
    topic     smallint not null references throughline.topics,
    last_seq  bigint   not null default 0,
    primary key (partition, topic)
) with (fillfactor = 10);

-- The events, for ever. payload is byte for byte what the topic carries.
create table throughline.events (
    partition      int      not null,
    topic          smallint not null,
    seq            bigint   not null,
    stream_id      uuid     not null,
    version        bigint   not null,
    event_id       uuid     not null,
    type           text     not null,
    schema_version smallint not null,
    command_id     uuid     not null,
    correlation_id text     not null,
    causation_id   text,
    principal      text,
    recorded_at    timestamptz not null,
    payload        bytea    not null,
    primary key (partition, topic, seq),
    unique (partition, topic, stream_id, version)
);
comment on column throughline.events.payload is 'Confluent wire format: 0, schema id (4 bytes), Avro';
comment on column throughline.events.principal is 'Who sent the command, where it was authenticated';

-- The staging log of the Kafka partitions. Never updated, never deleted row by row: time
-- partitions wholly behind the relay's watermark are dropped.
create table throughline.outbox (
    partition      int      not null,
    topic          smallint not null,
    seq            bigint   not null,
    key            uuid     not null,
    type           text     not null,
    message_id     uuid     not null,
    subject        uuid     not null,
    schema_version smallint,
    stream_version bigint,
    command_id     uuid     not null,
    correlation_id text     not null,
    causation_id   text,
    traceparent    text,
    reply_to       text,
    created_at     timestamptz not null,
    value          bytea    not null,
    primary key (partition, topic, seq, created_at)
) partition by range (created_at);

-- One outcome per command id and destination partition, for the stated window.
create table throughline.commands (
    partition      int      not null,
    topic          smallint not null,
    command_id     uuid     not null,
    stream_id      uuid     not null,
    payload_hash   bytea    not null,
    accepted       boolean  not null,
    code           text,
    reason         text,
    version        bigint,
    seq            bigint,
    correlation_id text     not null,
    decided_at     timestamptz not null,
    primary key (partition, topic, command_id, decided_at)
) partition by range (decided_at);
comment on column throughline.commands.version is 'Stream version after the command; null if refused before loading';
comment on column throughline.commands.seq is 'Position of its last event in the events topic; null if refused';

-- Where each commands partition stands. Moved by compare-and-set in the append transaction.
create table throughline.offsets (
    partition    int    not null,
    source_topic text   not null,
    group_id     text   not null,
    next_offset  bigint not null,
    epoch        bigint not null default 0,
    owner        text   not null default '',
    topic_uuid   text,
    updated_at   timestamptz not null default now(),
    primary key (partition, source_topic, group_id)
) with (fillfactor = 10);
comment on column throughline.offsets.topic_uuid is 'Kafka''s id of the topic: tells a re-created topic from the old one';

create table throughline.snapshots (
    partition        int      not null,
    topic            smallint not null,
    stream_id        uuid     not null,
    version          bigint   not null,
    snapshot_version smallint not null,
    state            jsonb    not null,
    primary key (partition, topic, stream_id)
);

-- One owner per destination partition, by epoch. published moves over contiguous acknowledgements.
create table throughline.relay_leases (
    partition  int      not null,
    topic      smallint not null references throughline.topics,
    owner      text     not null default '',
    epoch      bigint   not null default 0,
    expires_at timestamptz not null default '-infinity',
    published  bigint   not null default 0,
    updated_at timestamptz not null default now(),
    primary key (partition, topic)
) with (fillfactor = 10);

create table throughline.relay_members (
    owner      text primary key,
    expires_at timestamptz not null
);

-- A projection's truth. One row per projection, generation (a schema of read tables) and partition.
create table throughline.checkpoints (
    partition   int    not null,
    projection  text   not null,
    generation  text   not null default 'read' check (generation in ('read', 'read_next', 'read_previous')),
    next_offset bigint not null default 0,
    seq         bigint not null default 0,
    epoch       bigint not null default 1,
    last_event_at timestamptz,
    updated_at  timestamptz not null default now(),
    primary key (partition, projection, generation)
) with (fillfactor = 10);

create table throughline.projections (
    name       text primary key,
    version    int  not null,
    paused     boolean not null default false,
    updated_at timestamptz not null default now()
);

-- What could not be handled, kept whole: dead commands and parked events.
create table throughline.dead_letters (
    id             bigint generated always as identity primary key,
    kind           text   not null check (kind in ('command', 'event')),
    consumer       text   not null,
    source_topic   text   not null,
    source_partition int  not null,
    source_offset  bigint,
    seq            bigint,
    key            bytea,
    headers        jsonb  not null default '{}',
    value          bytea,
    reason_code    text   not null,
    reason         text   not null,
    status         text   not null default 'parked' check (status in ('parked', 'replayed', 'discarded')),
    parked_at      timestamptz not null default now(),
    closed_at      timestamptz
);
create unique index dead_letters_source on throughline.dead_letters
    (source_topic, source_partition, source_offset, consumer) where source_offset is not null;
create index dead_letters_open on throughline.dead_letters (consumer, key) where status = 'parked';

-- Schema ids of the Confluent wire format, and the registry API's content.
create table throughline.schemas (
    id             int primary key generated always as identity,
    subject        text not null,
    version        int  not null,
    event_type     text not null,
    fingerprint    text not null,
    definition     text not null,
    registered_at  timestamptz not null default now(),
    unique (subject, version)
);

-- Events are never changed or removed: the database itself refuses.
create function throughline.refuse_change() returns trigger language plpgsql as $$
begin
    raise exception '% on throughline.% is refused: events are never changed', tg_op, tg_table_name
        using errcode = 'integrity_constraint_violation';
end $$;
create trigger events_are_immutable before update or delete on throughline.events
    for each row execute function throughline.refuse_change();
create trigger events_are_never_truncated before truncate on throughline.events
    for each statement execute function throughline.refuse_change();

-- Creates the time partitions of one table that cover [now - one width, now + ahead widths].
-- Names carry the lower bound in UTC. Idempotent; callers hold no lock while they wait.
create function throughline.create_time_partitions(parent text, width interval, ahead int)
returns int language plpgsql security definer set search_path = pg_catalog as $$
declare
    origin  timestamptz := date_bin(width, now(), timestamptz '2000-01-01 00:00:00+00');
    lower_bound timestamptz;
    child   text;
    created int := 0;
begin
    if parent not in ('outbox', 'commands') then
        raise exception 'throughline.% is not partitioned by time', parent;
    end if;
    perform pg_advisory_xact_lock(hashtext('throughline.time_partitions'));
    for step in -1 .. ahead loop
        lower_bound := origin + step * width;
        child := parent || '_' || to_char(lower_bound at time zone 'UTC', 'YYYYMMDD"T"HH24MISS');
        if not exists (
            -- An overlapping child of another width also covers the span.
            select from pg_inherits i join pg_class c on c.oid = i.inhrelid
            where i.inhparent = ('throughline.' || parent)::regclass
              and lower_bound + width > (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''([^'']+)''\)'))[1]::timestamptz
              and lower_bound < (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \(''([^'']+)''\)'))[1]::timestamptz
        ) then
            execute format('create table throughline.%I partition of throughline.%I for values from (%L) to (%L)',
                           child, parent, lower_bound, lower_bound + width);
            created := created + 1;
        end if;
    end loop;
    return created;
end $$;

-- Drops the outbox partitions that end before now and hold no row beyond the relay's watermark.
-- Returns the names dropped. Gives up at once (lock_timeout) rather than queue behind a reader.
create function throughline.drop_published_outbox() returns setof text
language plpgsql security definer set search_path = pg_catalog set lock_timeout = '200ms' as $$
declare
    child record;
    pending boolean;
begin
    for child in
        select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
        where i.inhparent = 'throughline.outbox'::regclass
          and (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \(''([^'']+)''\)'))[1]::timestamptz < now()
    loop
        execute format(
            'select exists (select from throughline.%I o left join throughline.relay_leases l using (partition, topic)
                            where o.seq > coalesce(l.published, 0))', child.relname) into pending;
        if not pending then
            begin
                execute format('drop table throughline.%I', child.relname);
                return next child.relname;
            exception when lock_not_available then
                raise notice 'outbox partition % is in use; it is dropped at the next turn', child.relname;
            end;
        end if;
    end loop;
end $$;

-- Drops the outcome partitions that ended longer than keep ago.
create function throughline.drop_old_commands(keep interval) returns setof text
language plpgsql security definer set search_path = pg_catalog set lock_timeout = '200ms' as $$
declare
    child record;
begin
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

revoke all on schema throughline, read, read_next, read_previous from public;
revoke all on all functions in schema throughline from public;
