//! Rego engines, input and verdict types; embeds the shipped policies.

pub mod input;
pub mod verdict;
