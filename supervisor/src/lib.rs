//! Runs encrypted SIF images under a grant.
