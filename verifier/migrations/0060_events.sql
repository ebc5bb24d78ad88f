-- What hosts are told, and what ran on them. Numbers of events only rise; a host names the last one that it has.
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    host BLOB, -- none: every host
    time_ms INTEGER NOT NULL,
    data TEXT NOT NULL -- JSON, countersign_wire::event::HostEvent
) STRICT;

CREATE TABLE runs (
    host BLOB NOT NULL,
    run BLOB NOT NULL,
    workload BLOB NOT NULL,
    verdict BLOB, -- the release; none: the host logged a start that this verifier never allowed
    host_policy TEXT, -- SHA-256 of the policies that allowed it
    workload_policy TEXT,
    life INTEGER NOT NULL, -- of the PCRs that its log is in
    released_ms INTEGER,
    started_ms INTEGER, -- by the host's clock
    seen_ms INTEGER, -- accepted evidence showed the start, this database's clock
    ended_ms INTEGER, -- accepted evidence showed the end
    status TEXT, -- how it ended
    ordered TEXT, -- stop, freeze or thaw, the operator's last order
    reason TEXT,
    findings INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (host, run)
) STRICT;
CREATE INDEX runs_by_time ON runs (released_ms);
CREATE INDEX runs_open ON runs (host) WHERE status IS NULL;

CREATE TABLE run_entries ( -- run-log entries that are neither receipt, start, end nor resume
    host BLOB NOT NULL,
    life INTEGER NOT NULL,
    recnum INTEGER NOT NULL,
    run BLOB,
    time_ms INTEGER NOT NULL, -- when accepted evidence showed it
    kind TEXT NOT NULL,
    text TEXT NOT NULL, -- JSON as the host wrote it
    PRIMARY KEY (host, life, recnum)
) STRICT;

CREATE TABLE run_logs ( -- how far each host's run log was read
    host BLOB PRIMARY KEY,
    life INTEGER NOT NULL,
    entries INTEGER NOT NULL
) STRICT;
