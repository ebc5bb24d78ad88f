//! SIF images: reader, writer, DSSE signatures, LUKS2 payloads and Merkle trees.
