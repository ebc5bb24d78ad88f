//! Relying side: appraise evidence, decide, release.
