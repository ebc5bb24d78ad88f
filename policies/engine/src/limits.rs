//! Every limit of this crate, with unit and source. Ours where no source is named.

use std::time::Duration;

/// Bytes of a bundle as stored.
pub const BUNDLE_BYTES: usize = 1 << 20;
/// Bytes of a bundle when unpacked.
pub const UNPACKED_BYTES: usize = 8 << 20;
/// Files in a bundle.
pub const FILES: usize = 256;
/// Bytes of one path inside a bundle: ustar's prefix, slash and name (POSIX.1-1988, pax).
pub const PATH_BYTES: usize = 255;
/// Folders below each other when a bundle is made.
pub const FOLDER_DEPTH: usize = 16;
/// Bytes of Rego in one bundle.
pub const REGO_BYTES: usize = 512 << 10;
/// Operators in one Rego file: chained ones nest in the parser's tree, which is walked recursively.
pub const OPERATORS: usize = 4_000;
/// Longest chain of calls between rules and functions: each link takes stack when it runs.
pub const CALL_DEPTH: usize = 64;
/// Instructions of the virtual machine in one decision (the engine's own default is 25,000: 1,000 IMA entries reach it).
pub const INSTRUCTIONS: usize = 2_000_000;
/// Instructions more for each reference value: they are the operator's own, and policies go through them once or a few times.
pub const INSTRUCTIONS_PER_VALUE: usize = 100;
/// Wall-clock time of one decision; a backstop only, because it makes the outcome depend on the machine.
pub const TIME: Duration = Duration::from_secs(2);
/// Instructions between two looks at the clock.
pub const TIME_CHECK: u32 = 1_000;
/// Stack of the thread on which a policy is compiled, bytes.
pub const COMPILE_STACK: usize = 256 << 20;
/// Reasons kept of one decision.
pub const REASONS: usize = 200;
/// Characters kept of one text in a reason.
pub const TEXT: usize = 2_000;

/// Builtins that a policy may call: those that both engines have, that depend on nothing but their arguments, and whose cost is in proportion to
/// them. Operators are instructions of the virtual machine and need no entry.
pub const BUILTINS: &[&str] = &[
    "__builtin_sets.intersection",
    "__builtin_sets.union",
    "abs",
    "array.concat",
    "array.reverse",
    "array.slice",
    "base64.decode",
    "base64.encode",
    "base64.is_valid",
    "bits.and",
    "bits.negate",
    "bits.or",
    "bits.rsh",
    "bits.xor",
    "ceil",
    "concat",
    "contains",
    "count",
    "endswith",
    "floor",
    "format_int",
    "glob.match",
    "hex.decode",
    "hex.encode",
    "indexof",
    "indexof_n",
    "intersection",
    "is_array",
    "is_boolean",
    "is_null",
    "is_number",
    "is_object",
    "is_set",
    "is_string",
    "json.filter",
    "json.is_valid",
    "json.marshal",
    "json.remove",
    "json.unmarshal",
    "lower",
    "max",
    "min",
    "object.filter",
    "object.get",
    "object.keys",
    "object.remove",
    "object.subset",
    "object.union",
    "object.union_n",
    "regex.is_valid",
    "regex.match",
    "regex.replace",
    "regex.split",
    "replace",
    "round",
    "semver.compare",
    "semver.is_valid",
    "sort",
    "split",
    "sprintf",
    "startswith",
    "strings.any_prefix_match",
    "strings.any_suffix_match",
    "strings.count",
    "strings.replace_n",
    "strings.reverse",
    "substring",
    "sum",
    "to_number",
    "trim",
    "trim_left",
    "trim_prefix",
    "trim_right",
    "trim_space",
    "trim_suffix",
    "type_name",
    "union",
    "units.parse",
    "units.parse_bytes",
    "upper",
];

/// Why a builtin outside [`BUILTINS`] is refused.
#[must_use]
pub fn refusal(builtin: &str) -> &'static str {
    match builtin {
        "numbers.range" | "numbers.range_step" | "bits.lsh" | "product" => {
            "a short argument makes it ask for unbounded memory"
        }
        "rand.intn" | "uuid.rfc4122" | "opa.runtime" => "a verdict must be the same when it is computed again",
        "print" | "trace" | "test.sleep" => "it is for debugging",
        other if other.starts_with("time.") => {
            "policies get the time from input.time_ms, so that a verdict can be computed again"
        }
        other if other.starts_with("http.") || other.starts_with("net.") => "policies decide on the input alone",
        _ => "it is not among the builtins that both engines share",
    }
}
