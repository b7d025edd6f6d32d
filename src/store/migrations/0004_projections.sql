-- What operators did to projections, and the rights that keep projections apart.

alter table throughline.projections add column previous_version int;
alter table throughline.projections add column switched_at timestamptz;
alter table throughline.projections add column relations text[] not null default '{}';
alter table throughline.projections add column previous_relations text[] not null default '{}';
comment on column throughline.projections.version is 'Shape of the live tables; a program of another version waits for a rebuild';
comment on column throughline.projections.previous_version is 'Shape of the generation kept for rollback; null if none is kept';
comment on column throughline.projections.relations is 'Tables and views of the live generation: another version may name others';

-- Every reset of a partition, for audit: a skip forward leaves rows that are not the fold.
create table throughline.projection_resets (
    id          bigint generated always as identity primary key,
    projection  text   not null,
    partition   int    not null,
    direction   text   not null check (direction in ('backward', 'forward')),
    from_offset bigint not null,
    from_seq    bigint not null,
    to_offset   bigint not null,
    to_seq      bigint not null,
    reset_at    timestamptz not null default now()
);
comment on column throughline.projection_resets.to_seq is 'Last seq the rows reflect (backward) or pretend to reflect (forward) after the reset';

grant select, insert on throughline.projection_resets to throughline_projector;
grant select on throughline.projection_resets, throughline.projections to throughline_reader;

-- A projector moves its own checkpoint and no other's.
alter table throughline.checkpoints enable row level security;
create policy own_checkpoints on throughline.checkpoints
    using (current_user = 'throughline_projection_' || replace(projection, '-', '_'));
create policy read_checkpoints on throughline.checkpoints for select to throughline_reader using (true);
revoke insert, update, delete on throughline.projections from throughline_projector;
