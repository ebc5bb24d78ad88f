//! The policies that come with the program.

use std::{collections::BTreeMap, sync::LazyLock};

use crate::bundle::PolicyBundle;

/// Every Rego file that is shipped: path below the project's folder, and text. Tests stand beside what they test.
const FILES: &[(&str, &str)] = &[
    ("countersign/host/host.rego", include_str!("../../countersign/host/host.rego")),
    ("countersign/host/host_test.rego", include_str!("../../countersign/host/host_test.rego")),
    ("countersign/lib/binaries/binaries.rego", include_str!("../../countersign/lib/binaries/binaries.rego")),
    ("countersign/lib/binaries/binaries_test.rego", include_str!("../../countersign/lib/binaries/binaries_test.rego")),
    ("countersign/lib/boot_chain/boot_chain.rego", include_str!("../../countersign/lib/boot_chain/boot_chain.rego")),
    (
        "countersign/lib/boot_chain/boot_chain_test.rego",
        include_str!("../../countersign/lib/boot_chain/boot_chain_test.rego"),
    ),
    ("countersign/lib/clock/clock.rego", include_str!("../../countersign/lib/clock/clock.rego")),
    ("countersign/lib/clock/clock_test.rego", include_str!("../../countersign/lib/clock/clock_test.rego")),
    ("countersign/lib/dbx/dbx.rego", include_str!("../../countersign/lib/dbx/dbx.rego")),
    ("countersign/lib/dbx/dbx_test.rego", include_str!("../../countersign/lib/dbx/dbx_test.rego")),
    ("countersign/lib/findings/findings.rego", include_str!("../../countersign/lib/findings/findings.rego")),
    ("countersign/lib/findings/findings_test.rego", include_str!("../../countersign/lib/findings/findings_test.rego")),
    ("countersign/lib/identity/identity.rego", include_str!("../../countersign/lib/identity/identity.rego")),
    ("countersign/lib/identity/identity_test.rego", include_str!("../../countersign/lib/identity/identity_test.rego")),
    ("countersign/lib/ima/ima.rego", include_str!("../../countersign/lib/ima/ima.rego")),
    ("countersign/lib/ima/ima_test.rego", include_str!("../../countersign/lib/ima/ima_test.rego")),
    ("countersign/lib/kernel/kernel.rego", include_str!("../../countersign/lib/kernel/kernel.rego")),
    ("countersign/lib/kernel/kernel_test.rego", include_str!("../../countersign/lib/kernel/kernel_test.rego")),
    ("countersign/lib/runtime/runtime.rego", include_str!("../../countersign/lib/runtime/runtime.rego")),
    ("countersign/lib/runtime/runtime_test.rego", include_str!("../../countersign/lib/runtime/runtime_test.rego")),
    (
        "countersign/lib/secure_boot/secure_boot.rego",
        include_str!("../../countersign/lib/secure_boot/secure_boot.rego"),
    ),
    (
        "countersign/lib/secure_boot/secure_boot_test.rego",
        include_str!("../../countersign/lib/secure_boot/secure_boot_test.rego"),
    ),
    ("countersign/lib/tpm/tpm.rego", include_str!("../../countersign/lib/tpm/tpm.rego")),
    ("countersign/lib/tpm/tpm_test.rego", include_str!("../../countersign/lib/tpm/tpm_test.rego")),
    ("countersign/lib/uki/uki.rego", include_str!("../../countersign/lib/uki/uki.rego")),
    ("countersign/lib/uki/uki_test.rego", include_str!("../../countersign/lib/uki/uki_test.rego")),
    ("countersign/lib/verdict/verdict.rego", include_str!("../../countersign/lib/verdict/verdict.rego")),
    ("countersign/lib/verdict/verdict_test.rego", include_str!("../../countersign/lib/verdict/verdict_test.rego")),
    ("countersign/workload/workload.rego", include_str!("../../countersign/workload/workload.rego")),
    ("countersign/workload/workload_test.rego", include_str!("../../countersign/workload/workload_test.rego")),
];

static HOST: LazyLock<Vec<u8>> = LazyLock::new(|| build(&["host/", "lib/"]));

static WORKLOAD: LazyLock<Vec<u8>> =
    LazyLock::new(|| build(&["workload/", "lib/findings/", "lib/identity/", "lib/secure_boot/", "lib/verdict/"]));

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

/// Every shipped Rego file by its path, tests included: a native OPA project.
#[must_use]
pub fn library() -> BTreeMap<&'static str, &'static str> {
    FILES.iter().copied().collect()
}

/// A bundle of some folders below countersign/, without the tests.
#[expect(clippy::expect_used, reason = "the files are constants of this crate, and a test builds both bundles")]
fn build(folders: &[&str]) -> Vec<u8> {
    let wanted = |path: &str| {
        let inner = path.strip_prefix("countersign/").unwrap_or_default();
        !path.ends_with("_test.rego") && folders.iter().any(|folder| inner.starts_with(folder))
    };
    let files: BTreeMap<String, Vec<u8>> = FILES
        .iter()
        .filter(|(path, _)| wanted(path))
        .map(|(path, text)| ((*path).to_owned(), text.as_bytes().to_vec()))
        .collect();
    PolicyBundle::build(files).expect("a shipped policy is a valid bundle")
}
