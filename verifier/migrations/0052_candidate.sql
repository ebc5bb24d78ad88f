-- What the candidate policy (verifier policy load --audit) would have decided: a verdict document with mode audit-only.
CREATE TABLE candidate_verdicts (
    verdict BLOB PRIMARY KEY REFERENCES verdicts (id) ON DELETE CASCADE,
    digest BLOB NOT NULL, -- SHA-256 of the candidate's bundle
    allow INTEGER NOT NULL,
    document BLOB NOT NULL
) STRICT;
CREATE INDEX candidate_verdicts_by_digest ON candidate_verdicts (digest);
