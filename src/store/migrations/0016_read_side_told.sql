-- A read tells why its table does not go on: paused is a reason, and only the row of the projection knows.
grant select on throughline.projections to throughline_reader;
