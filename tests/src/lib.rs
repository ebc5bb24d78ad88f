//! Whole-product tests, the demo's driver and benches.
