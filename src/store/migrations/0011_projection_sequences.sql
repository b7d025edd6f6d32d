-- What the rows of each generation are the fold of, whatever was parked, reset, rebuilt or rolled back.

-- The rows of a generation are the fold of all events up to its checkpoint without these. They belong to
-- the checkpoint: they move with it when generations switch, and go with it.
create table throughline.projection_gaps (
    projection text   not null,
    generation text   not null default 'read',
    partition  int    not null,
    from_seq   bigint not null,
    to_seq     bigint not null check (to_seq >= from_seq),
    cause      text   not null check (cause in ('parked', 'skipped')),
    primary key (projection, generation, partition, from_seq),
    foreign key (partition, projection, generation)
        references throughline.checkpoints (partition, projection, generation) on update cascade on delete cascade
);
comment on column throughline.projection_gaps.cause is
    'parked: one event with a dead letter, open or discarded; skipped: a reset forward went over these';
grant select, insert, delete on throughline.projection_gaps to throughline_projector;
grant select on throughline.projection_gaps to throughline_reader;
alter table throughline.projection_gaps enable row level security;
create policy own_gaps on throughline.projection_gaps
    using (current_user = 'throughline_projection_' || replace(projection, '-', '_'));
create policy read_gaps on throughline.projection_gaps for select to throughline_reader using (true);

-- A reset, rebuild or rollback closes a letter otherwise than an operator who discards it: its event is
-- applied, or comes again. Discarded events stay out for good.
alter table throughline.dead_letters drop constraint dead_letters_status_check;
alter table throughline.dead_letters add constraint dead_letters_status_check
    check (status in ('parked', 'replayed', 'discarded', 'superseded'));
alter table throughline.dead_letters add column superseded_by text;
comment on column throughline.dead_letters.superseded_by is 'What made the letter pointless: its event was applied in another way, or comes again';
create index dead_letters_event on throughline.dead_letters (consumer, source_partition, seq)
    where kind = 'event' and seq is not null;

-- An event's letter is told by its seq, wherever the event stands on the topic: offsets begin anew in a topic
-- made anew, and an event may come twice. Only other records are told by their offset.
do $$
declare
    definition text := pg_get_indexdef('throughline.dead_letters_source'::regclass);
begin
    drop index throughline.dead_letters_source;
    execute replace(definition, '(source_offset IS NOT NULL)',
                    '(source_offset IS NOT NULL AND (kind = ''command'' OR seq IS NULL))');
end $$;

-- A projection that meets another life of its topic looks for its place by seq.
alter table throughline.checkpoints add column topic_id text;
comment on column throughline.checkpoints.topic_id is 'Kafka''s id of the topic that next_offset is a place in; null: not known';
alter table throughline.projection_resets drop constraint projection_resets_direction_check;
alter table throughline.projection_resets add constraint projection_resets_direction_check
    check (direction in ('backward', 'forward', 'current', 'refill'));
-- Where the topic holds no record that tells a number, what was published tells it.
grant select on throughline.relay_leases to throughline_projector;

-- What is known of the past. A reset closed letters in the transaction that recorded it.
update throughline.dead_letters d set status = 'superseded', superseded_by = 'reset ' || r.id
from throughline.projection_resets r
where d.kind = 'event' and d.status = 'discarded' and r.direction = 'backward' and r.reset_at = d.closed_at
  and r.partition = d.source_partition and d.consumer like '%-projection-' || r.projection;
insert into throughline.projection_gaps (projection, generation, partition, from_seq, to_seq, cause)
select c.projection, c.generation, c.partition, d.seq, d.seq, 'parked'
from throughline.checkpoints c
join throughline.projections p on p.name = c.projection
join throughline.dead_letters d on d.kind = 'event' and d.source_partition = c.partition and d.seq <= c.seq
     and d.consumer like '%-projection-' || c.projection
where c.generation <> 'read_next'
  and (d.status in ('parked', 'discarded')
       or (c.generation = 'read_previous' and d.status = 'replayed' and d.closed_at > p.switched_at))
on conflict do nothing;
insert into throughline.projection_gaps (projection, partition, from_seq, to_seq, cause)
select c.projection, c.partition, r.from_seq + 1, r.to_seq, 'skipped'
from throughline.checkpoints c
join throughline.projections p on p.name = c.projection
join throughline.projection_resets r on r.projection = c.projection and r.partition = c.partition
     and r.direction = 'forward' and r.to_seq > r.from_seq and r.to_seq <= c.seq
     and r.reset_at > coalesce(p.switched_at, '-infinity')
where c.generation = 'read'
  and not exists (select from throughline.projection_resets later
                  where later.projection = r.projection and later.partition = r.partition
                    and later.direction = 'backward' and later.id > r.id)
on conflict do nothing;
