//! The policies that come with the program.

use std::{collections::BTreeMap, sync::LazyLock};

use crate::bundle::PolicyBundle;

static HOST: LazyLock<Vec<u8>> =
    LazyLock::new(|| build(&[("countersign/host/host.rego", include_str!("../../countersign/host/host.rego"))]));

static WORKLOAD: LazyLock<Vec<u8>> = LazyLock::new(|| {
    build(&[("countersign/workload/workload.rego", include_str!("../../countersign/workload/workload.rego"))])
});

/// The host policy that `verifier init` installs, as bundle bytes: the boot chain against reference values, Secure Boot, ExitBootServices.
#[must_use]
pub fn shipped_host_policy() -> &'static [u8] {
    &HOST
}

/// An example of a workload policy, as bundle bytes; its source is policies/countersign/workload.
#[must_use]
pub fn shipped_workload_policy() -> &'static [u8] {
    &WORKLOAD
}

#[expect(clippy::expect_used, reason = "the files are constants of this crate, and a test builds both bundles")]
fn build(files: &[(&str, &str)]) -> Vec<u8> {
    let files: BTreeMap<String, Vec<u8>> =
        files.iter().map(|(path, text)| ((*path).to_owned(), text.as_bytes().to_vec())).collect();
    PolicyBundle::build(files).expect("a shipped policy is a valid bundle")
}
