-- How far the role `audit` has proven each events topic: sequence and versions dense, outcomes that agree, and the
-- records on the topic byte for byte what the store has.

create table throughline.audits (
    topic       smallint not null references throughline.topics,
    partition   int      not null,
    seq         bigint   not null,
    next_offset bigint   not null,
    proven_at   timestamptz not null default now(),
    primary key (topic, partition)
) with (fillfactor = 10);
comment on column throughline.audits.seq is 'Everything up to here was found as promised';
comment on column throughline.audits.next_offset is 'Kafka''s offset behind the record of seq';
comment on column throughline.audits.proven_at is 'When that was last found';

grant usage on schema throughline to throughline_auditor;
grant select on throughline.events, throughline.commands, throughline.counters, throughline.relay_leases,
    throughline.topics to throughline_auditor;
grant select, insert, update on throughline.audits to throughline_auditor;
grant select on throughline.audits to throughline_reader;
