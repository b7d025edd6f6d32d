-- Process managers: where each stands, what its instances know and wait for, and what they send.

create table throughline.process_managers (
    name       text primary key,
    paused     boolean not null default false,
    updated_at timestamptz not null default now(),
    sender       uuid,
    sender_until interval not null default '0'
);
comment on column throughline.process_managers.sender is
    'Who produces its commands, until throughline.clock says sender_until: two would send everything twice';

-- Where each partition that it reads stands. Moved by compare-and-set in the transaction that handles the records.
create table throughline.process_checkpoints (
    process     text   not null references throughline.process_managers,
    topic       text   not null,
    partition   int    not null,
    next_offset bigint not null,
    seq         bigint not null default 0,
    epoch       bigint not null default 0,
    topic_id    text,
    updated_at  timestamptz not null default now(),
    primary key (process, topic, partition)
) with (fillfactor = 10);
comment on column throughline.process_checkpoints.seq is 'Last sequence number handled: what comes again is passed over';

-- Its row lock, held to commit, makes all that concerns an instance follow one after the other, whoever does it.
create table throughline.process_instances (
    process    text   not null references throughline.process_managers,
    instance   uuid   not null,
    state      json   not null,
    inputs     bigint not null default 0,
    begun_at   timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    primary key (process, instance)
) with (fillfactor = 50);
comment on column throughline.process_instances.state is 'The fold of its inputs; json and not jsonb, which refuses some texts';

-- What each instance was told, in order: its state can be made anew from these, and none is handled twice.
create table throughline.process_inputs (
    process        text   not null,
    instance       uuid   not null,
    number         bigint not null,
    cause          uuid   not null,
    correlation_id text   not null,
    input          json   not null,
    handled_at     timestamptz not null default now(),
    primary key (process, instance, number),
    unique (process, instance, cause)
);
comment on column throughline.process_inputs.cause is 'Id of the event, of the result record, or of the deadline';

create table throughline.process_deadlines (
    process        text     not null,
    instance       uuid     not null,
    name           text     not null,
    due            interval not null,
    set_by         uuid     not null,
    correlation_id text     not null,
    failed         text,
    primary key (process, instance, name)
);
create index process_deadlines_due on throughline.process_deadlines (process, due) where failed is null;
comment on column throughline.process_deadlines.due is
    'By throughline.clock, which only ever grows by time that passed: a clock that is set fires nothing early, and holds nothing up';
comment on column throughline.process_deadlines.failed is 'Why it could not be handled; it is tried again by `process retry`';

-- What instances send. Commands topics are written by everybody, so these are not the relay's: the process
-- itself produces them after the commit, and marks what was acknowledged. What is sent again counts once, by its id.
create table throughline.process_commands (
    number         bigint generated always as identity,
    process        text not null,
    command_id     uuid not null,
    instance       uuid not null,
    cause          uuid not null,
    context        text not null,
    stream_id      uuid not null,
    command        text not null,
    value          bytea not null,
    correlation_id text not null,
    created_at     timestamptz not null default now(),
    sent_at        timestamptz,
    primary key (process, command_id)
);
create index process_commands_unsent on throughline.process_commands (process, number) where sent_at is null;
create index process_commands_instance on throughline.process_commands (process, instance, number);

alter table throughline.dead_letters add column instance uuid;
comment on column throughline.dead_letters.instance is 'Of a process manager: later inputs of the instance wait behind this one';
create index dead_letters_instance on throughline.dead_letters (consumer, instance)
    where status = 'parked' and instance is not null;

grant usage on schema throughline to throughline_process;
grant select on throughline.process_managers, throughline.topics, throughline.counters, throughline.clock to throughline_process;
grant select, insert, update on throughline.process_checkpoints, throughline.process_instances, throughline.process_inputs,
    throughline.process_commands, throughline.dead_letters to throughline_process;
grant delete on throughline.dead_letters to throughline_process;
grant select, insert, update, delete on throughline.process_deadlines to throughline_process;
grant update (sender, sender_until) on throughline.process_managers to throughline_process;
grant execute on function throughline.pass_time(interval, interval) to throughline_process;
grant select on throughline.process_managers, throughline.process_checkpoints, throughline.process_instances,
    throughline.process_inputs, throughline.process_deadlines, throughline.process_commands to throughline_reader;
