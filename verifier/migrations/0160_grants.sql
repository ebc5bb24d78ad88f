-- Owners' grants: a workload whose sealed_key is empty is released with these only.
CREATE TABLE grants (
    workload BLOB NOT NULL,
    host BLOB NOT NULL,
    grant_cbor BLOB NOT NULL, -- the newest one
    added_ms INTEGER NOT NULL,
    PRIMARY KEY (workload, host)
) STRICT;
