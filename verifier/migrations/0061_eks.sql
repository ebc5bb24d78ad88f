-- Several EKs of one TPM are one identity; and EKs without a certificate that an operator has listed.
CREATE TABLE host_eks (
    ek BLOB PRIMARY KEY, -- SHA-256 of the EK's SubjectPublicKeyInfo
    host BLOB NOT NULL,
    enrolment_cbor BLOB NOT NULL -- how it was certified
) STRICT;
CREATE INDEX host_eks_by_host ON host_eks (host);

CREATE TABLE ek_allowed (
    ek BLOB PRIMARY KEY, -- SHA-256 of the EK's SubjectPublicKeyInfo
    ek_public BLOB NOT NULL, -- TPMT_PUBLIC
    name TEXT NOT NULL,
    development INTEGER NOT NULL,
    added_ms INTEGER NOT NULL
) STRICT;

ALTER TABLE enrolments ADD COLUMN others_cbor BLOB NOT NULL DEFAULT x'80';
