-- Times are milliseconds since 1970 by this database's clock. Blobs named *_cbor hold types of countersign_verifier::appraise and countersign_wire.
CREATE TABLE settings (key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
INSERT INTO settings VALUES ('epoch', 1), ('reference_revision', 0);

CREATE TABLE ek_roots (
    fingerprint BLOB PRIMARY KEY, -- SHA-256 of the certificate
    der BLOB NOT NULL,
    subject TEXT NOT NULL,
    development INTEGER NOT NULL
) STRICT;

CREATE TABLE tokens (
    id BLOB PRIMARY KEY,
    secret_hash BLOB NOT NULL, -- SHA-256: the secret itself is never stored
    host BLOB, -- admits a new AK on this host only
    uses_left INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE enrolments (
    id BLOB PRIMARY KEY,
    proof BLOB NOT NULL, -- the HMAC that proves activation
    request_cbor BLOB NOT NULL,
    enrolment_cbor BLOB NOT NULL,
    checked TEXT NOT NULL, -- JSON: root, simulated, facts
    expires_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE hosts (
    host BLOB PRIMARY KEY,
    name TEXT NOT NULL,
    state INTEGER NOT NULL, -- 0 pending, 1 active, 2 suspended, 3 revoked
    state_reason TEXT NOT NULL,
    simulated INTEGER NOT NULL,
    ek_root TEXT NOT NULL,
    tpm TEXT NOT NULL, -- JSON object
    ek_public BLOB NOT NULL,
    ak_public BLOB NOT NULL,
    run_pcr INTEGER NOT NULL,
    baseline_cbor BLOB,
    lost_epoch INTEGER,
    next_receipt INTEGER NOT NULL,
    enrolment_cbor BLOB NOT NULL,
    version INTEGER NOT NULL,
    enrolled_ms INTEGER NOT NULL,
    attested_ms INTEGER
) STRICT;

CREATE TABLE receipts (
    host BLOB NOT NULL,
    number INTEGER NOT NULL,
    receipt_cbor BLOB NOT NULL,
    PRIMARY KEY (host, number)
) STRICT;

CREATE TABLE challenges (
    nonce BLOB PRIMARY KEY,
    host BLOB NOT NULL,
    record_cbor BLOB NOT NULL,
    snapshot_cbor BLOB NOT NULL,
    open INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    evidence_hash BLOB,
    answer BLOB
) STRICT;
CREATE INDEX challenges_by_host ON challenges (host);

CREATE TABLE verdicts (
    id BLOB PRIMARY KEY,
    host BLOB NOT NULL,
    time_ms INTEGER NOT NULL,
    purpose TEXT NOT NULL,
    allow INTEGER NOT NULL,
    workload BLOB,
    document BLOB NOT NULL,
    record BLOB NOT NULL
) STRICT;
CREATE INDEX verdicts_by_host ON verdicts (host, time_ms);

CREATE TABLE workloads (
    id BLOB PRIMARY KEY,
    name TEXT NOT NULL,
    payload_root BLOB NOT NULL,
    policy_digest BLOB NOT NULL,
    policy BLOB NOT NULL,
    sealed_key BLOB NOT NULL, -- AES-256-GCM under the master key
    least_selection TEXT NOT NULL, -- JSON array of PCRs
    withdrawn INTEGER NOT NULL,
    registered_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE imports (
    host BLOB NOT NULL,
    ak_name BLOB NOT NULL,
    workload BLOB NOT NULL,
    import_cbor BLOB NOT NULL,
    PRIMARY KEY (host, ak_name, workload)
) STRICT;

CREATE TABLE reference_sets (
    name TEXT PRIMARY KEY,
    data TEXT NOT NULL, -- JSON array of reference values
    added_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE audit (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    time_ms INTEGER NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    detail TEXT NOT NULL
) STRICT;
