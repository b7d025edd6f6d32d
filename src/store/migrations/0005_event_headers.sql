-- What the first publication of an event said in its headers, so that a later one can say the same.
-- Null in events of before this step, and wherever the command carried none.

alter table throughline.events
    add column traceparent text,
    add column reply_to text;
