-- Dead letters of any bytes, and commands that are decided anew.

-- Headers as they came: names and values of any bytes, in order, repeated ones and nulls too. headers is
-- what releases before kept, and is not written any more.
alter table throughline.dead_letters
    add column header_names  bytea[],
    add column header_values bytea[],
    add column headers_unreadable boolean not null default false,
    add column topic_id text not null default '',
    add column command_id uuid,
    add column destination int,
    add constraint dead_letters_headers_pair
        check (coalesce(cardinality(header_names), 0) = coalesce(cardinality(header_values), 0));
comment on column throughline.dead_letters.headers is 'Of letters that an earlier release kept; later ones have names and values as bytes';
comment on column throughline.dead_letters.headers_unreadable is 'The Kafka client could not take the headers apart: the letter lacks them';
comment on column throughline.dead_letters.topic_id is 'Kafka''s id of the topic, since offsets begin anew in a topic made anew; empty where it is not known';
comment on column throughline.dead_letters.command_id is 'The id under which the command''s outcome is kept; null for events, and where no outcome was recorded';
comment on column throughline.dead_letters.destination is 'Partition of the events topic that the outcome was recorded for';

update throughline.dead_letters set
    header_names = array(select convert_to(key, 'UTF8') from jsonb_each_text(headers) order by key),
    header_values = array(select convert_to(value, 'UTF8') from jsonb_each_text(headers) order by key);

drop index throughline.dead_letters_source;
create unique index dead_letters_source on throughline.dead_letters
    (source_topic, topic_id, source_partition, source_offset, consumer) where source_offset is not null;
-- A btree refuses keys above a third of a page; a hash takes any.
drop index throughline.dead_letters_open;
create index dead_letters_open on throughline.dead_letters using hash (key) where status = 'parked';
create index dead_letters_standing on throughline.dead_letters (consumer, source_partition, seq) where status = 'parked';

-- Commands among the dead letters that an operator has sent again, until the processor meets them. Empty
-- but for that while.
create table throughline.replays (
    letter      bigint primary key references throughline.dead_letters,
    from_offset bigint not null,
    begun_at    timestamptz not null default now()
);
comment on column throughline.replays.from_offset is 'End of the partition before the record was produced: from there on it is looked for';

-- Lets the commands of these letters be decided anew, in the transaction that decides them: their failed
-- outcomes go, the letters are closed, and the permits are used up. Returns how many of these there were.
create function throughline.use_replays(topic_ smallint, letters bigint[]) returns bigint
language plpgsql security definer set search_path = pg_catalog as $$
declare
    used bigint;
begin
    delete from throughline.replays where letter = any(letters);
    get diagnostics used = row_count;
    delete from throughline.commands c using throughline.dead_letters d
    where d.id = any(letters) and c.partition = d.destination and c.topic = topic_
      and c.command_id = d.command_id and c.code = d.reason_code and not c.accepted
      and (convert_to(c.stream_id::text, 'UTF8') = d.key or c.stream_id = '00000000-0000-0000-0000-000000000000');
    update throughline.dead_letters set status = 'replayed', closed_at = coalesce(closed_at, now())
    where id = any(letters) and status in ('parked', 'replayed');
    return used;
end $$;
revoke all on function throughline.use_replays(smallint, bigint[]) from public;
grant execute on function throughline.use_replays(smallint, bigint[]) to throughline_writer;
grant select on throughline.replays to throughline_writer;

-- Bytes for people: as text where they are text, with escapes else. Never refuses.
create function throughline.readable(bytes bytea) returns text
language plpgsql immutable strict parallel safe set search_path = pg_catalog as $$
begin
    return convert_from(bytes, 'UTF8');
exception when others then
    return encode(bytes, 'escape');
end $$;
comment on function throughline.readable is 'Bytes for people: select throughline.readable(key), throughline.readable(value) from throughline.dead_letters';
