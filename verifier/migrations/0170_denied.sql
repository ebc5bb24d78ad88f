-- Evidence of denied verdicts is bounded for each host.
CREATE INDEX denied_evidence ON verdicts (host, time_ms) WHERE allow = 0 AND evidence_deleted_ms IS NULL;
