-- Who lives, and what each does with its partitions. Told by the processes themselves; nothing is decided by
-- it, so losing it costs a moment's sight and no more.

create table throughline.processes (
    id         uuid        primary key,
    host       text        not null,
    pid        int         not null,
    roles      text[]      not null,
    admin      text,
    version    text        not null,
    started_at timestamptz not null,
    seen_at    timestamptz not null
);
comment on table throughline.processes is
    'One row a run of a process; whoever is killed leaves it behind, and it is removed after an hour';
comment on column throughline.processes.admin is 'Where /livez, /readyz and /metrics are served';
comment on column throughline.processes.seen_at is 'Last heartbeat, by the clock of this database';

create table throughline.partition_states (
    process   uuid        not null references throughline.processes on delete cascade,
    loop      text        not null,
    topic     text        not null,
    partition int         not null,
    state     text        not null check (state in ('pending', 'claimed', 'running', 'standing')),
    since     timestamptz not null,
    reason    text,
    cure      text,
    primary key (process, loop, topic, partition)
);
comment on table throughline.partition_states is
    'What each process does with each of its partitions; only rows of processes seen lately count';

grant usage on schema throughline to throughline_presence;
grant select, insert, update, delete on throughline.processes, throughline.partition_states to throughline_presence;
grant select on throughline.processes, throughline.partition_states to throughline_reader;
-- For the gauges that are the store's and no loop's.
grant select (status) on throughline.dead_letters to throughline_presence;
