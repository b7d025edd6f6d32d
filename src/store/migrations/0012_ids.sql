-- A command id counts in one stream: several streams may have an outcome of one id, also of one transaction. The
-- key is made anew for that, which takes about as long as creating an index over the outcomes that are kept.

alter table throughline.commands
    drop constraint commands_pkey,
    add primary key (partition, topic, command_id, stream_id, decided_at);

comment on table throughline.commands is
    'One outcome per command id and stream; a stream of the nil id stands for a record that told none';
comment on column throughline.commands.payload_hash is
    'First 16 bytes of a SHA-256: of what the command means, or of the value of a record that is no command; of any record''s value in rows of earlier releases';
comment on column throughline.events.causation_id is
    'What caused it: as the command''s sender said, else the command''s id; null in events of earlier releases for the latter';
