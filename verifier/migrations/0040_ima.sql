-- IMA: reference sets by name, their documents by digest (kept for old verdicts' bundles), and what each host's list left.
CREATE TABLE ima_documents (
    digest BLOB PRIMARY KEY, -- SHA-256
    data BLOB NOT NULL -- JSON, countersign.reference/v1
) STRICT;

CREATE TABLE ima_sets (
    name TEXT PRIMARY KEY,
    digest BLOB NOT NULL REFERENCES ima_documents (digest),
    files INTEGER NOT NULL,
    signer TEXT NOT NULL, -- key id of the envelope's signer, or empty
    added_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE ima_states (
    host BLOB PRIMARY KEY,
    state_cbor BLOB NOT NULL
) STRICT;
