-- What was released, as often as it was: `cap` counts it by boot. A refunded one counts no longer.
CREATE TABLE releases (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    time_ms INTEGER NOT NULL,
    host BLOB NOT NULL,
    workload BLOB NOT NULL,
    run BLOB NOT NULL,
    verdict BLOB NOT NULL,
    life INTEGER NOT NULL, -- of the host's PCRs
    reset_count INTEGER NOT NULL,
    restart_count INTEGER NOT NULL,
    cap INTEGER, -- the obligation when it was released
    refunded_ms INTEGER
) STRICT;
CREATE INDEX releases_by_workload ON releases (host, workload, number);
CREATE INDEX releases_by_run ON releases (run);

-- Until when a policy wants this verdict's evidence kept; when it was deleted.
ALTER TABLE verdicts ADD COLUMN retain_until_ms INTEGER;
ALTER TABLE verdicts ADD COLUMN evidence_deleted_ms INTEGER;
CREATE INDEX evidence_by_time ON verdicts (time_ms) WHERE evidence_deleted_ms IS NULL;
