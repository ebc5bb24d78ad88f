//! Named attacks for `verifier policy mutate`. Each changes what the machine does ("boots", measured) or what it says (forged), and nothing
//! else; it answers whether there was anything to change.

use countersign_tpm::alg::HashAlg;
use countersign_wire::enrol::HostState;
use countersign_wire::id::{HostId, Nonce, PayloadRoot, PolicyDigest, WorkloadId};
use countersign_wire::receipt::Receipt;

use super::log::{OwnEvent, OwnLog, ima_entry};
use super::machine::{DENIED, Machine, SHIPPED_OFF, reference};
use super::steps::{Kind, command_line, entry, event, forged, hidden, insert, program, ran, remove, unknown, variable};
use crate::appraise::{ReceiptStatus, StoredReceipt};

/// An attack: its name, what it is in one sentence, and what it does.
pub(super) struct Attack {
    pub(super) name: &'static str,
    pub(super) what: &'static str,
    pub(super) apply: fn(&mut Machine) -> bool,
}

macro_rules! attacks {
    ($($name:literal, $what:literal, |$machine:ident| $body:expr;)*) => {
        /// All attacks.
        pub(super) const ATTACKS: &[Attack] = &[$(Attack { name: $name, what: $what, apply: |$machine| $body }),*];
    };
}

attacks! {
    // what the firmware did
    "secure-boot-off", "Secure Boot switched off", |m| variable(m, "SecureBoot", |_| vec![0]);
    "secure-boot-off-recorded", "a recorded boot of the same disk with Secure Boot off", |m| {
        m.log = OwnLog::parse(SHIPPED_OFF).ok();
        m.log.is_some()
    };
    "secure-boot-unmeasured", "the variable SecureBoot is not measured", |m| remove(m, 7, Kind::EFI_VARIABLE_DRIVER_CONFIG, b"S\0e\0c\0u\0r\0e\0B\0o\0o\0t\0");
    "secure-boot-odd-value", "SecureBoot holds 2 instead of 1", |m| variable(m, "SecureBoot", |_| vec![2]);
    "secure-boot-two-bytes", "SecureBoot has a second byte", |m| variable(m, "SecureBoot", |_| vec![1, 1]);
    "secure-boot-empty", "SecureBoot has no contents", |m| variable(m, "SecureBoot", |_| Vec::new());
    "platform-key-replaced", "the platform key is another one", |m| variable(m, "PK", |old| old.iter().rev().copied().collect());
    "platform-key-removed", "set-up mode: there is no platform key", |m| variable(m, "PK", |_| Vec::new());
    "kek-replaced", "the key exchange key is another one", |m| variable(m, "KEK", |old| old.iter().rev().copied().collect());
    "db-extra-key", "a further key may sign boot loaders", |m| variable(m, "db", |old| [old, &[0x5a; 40]].concat());
    "db-emptied", "no key at all is listed", |m| variable(m, "db", |_| Vec::new());
    "dbx-rolled-back", "the list of revoked boot loaders is an old, short one", |m| variable(m, "dbx", |old| old.get(..old.len().checked_div(2).unwrap_or(0)).unwrap_or_default().to_vec());
    "dbx-emptied", "the list of revoked boot loaders is empty", |m| variable(m, "dbx", |_| Vec::new());
    "dbx-unmeasured", "the list of revoked boot loaders is not measured", |m| remove(m, 7, Kind::EFI_VARIABLE_DRIVER_CONFIG, b"d\0b\0x\0");
    "sbat-rolled-back", "shim's list of revoked generations is an old one", |m| variable(m, "SbatLevel", |_| b"sbat,1,2021030218\n".to_vec());
    "authority-replaced", "another key vouched for the boot loader", |m| unknown(m, 7, Kind::EFI_VARIABLE_AUTHORITY, b"d\0b\0");
    "firmware-replaced", "the firmware's code is another one", |m| unknown(m, 0, Kind::EFI_PLATFORM_FIRMWARE_BLOB, b"");
    "firmware-old-version", "the firmware calls itself an older version", |m| event(m, 0, Kind::S_CRTM_VERSION, b"", |event| event.measure(b"0\0.\x001\0\0\0".to_vec()));
    "firmware-unmeasured", "a firmware volume is not measured", |m| remove(m, 0, Kind::EFI_PLATFORM_FIRMWARE_BLOB, b"");
    "option-rom", "an option ROM's driver runs", |m| insert(m, 2, Kind::SEPARATOR, b"", |event| {
        event.kind = Kind::EFI_BOOT_SERVICES_DRIVER;
        event.data = vec![0; 16];
        event.measure_unknown();
    });
    "firmware-configuration", "a new configuration is measured into PCR 3", |m| insert(m, 3, Kind::SEPARATOR, b"", |event| {
        event.kind = Kind::PLATFORM_CONFIG_FLAGS;
        event.measure(b"debug".to_vec());
    });
    "firmware-error", "the firmware reports an error instead of a separator", |m| event(m, 4, Kind::SEPARATOR, b"", |event| event.measure(vec![0xff; 4]));

    // what was booted
    "shim-replaced", "the first boot loader is another one", |m| program(m, 0, OwnEvent::measure_unknown);
    "grub-replaced", "the second boot loader is another one", |m| program(m, 1, OwnEvent::measure_unknown);
    "unknown-kernel", "an unknown kernel was started", |m| program(m, 2, OwnEvent::measure_unknown);
    "debug-kernel", "a debug build of the kernel: file and program differ", |m| {
        program(m, 2, OwnEvent::measure_unknown) && unknown(m, 9, Kind::IPL, b"/vmlinuz")
    };
    "unknown-initrd", "another initial RAM disk", |m| {
        unknown(m, 9, Kind::IPL, b"/initrd") | unknown(m, 9, Kind::EVENT_TAG, b"Linux initrd")
    };
    "initrd-unmeasured", "the initial RAM disk is not measured", |m| remove(m, 9, Kind::IPL, b"/initrd") && remove(m, 9, Kind::EVENT_TAG, b"Linux initrd")
        && unknown(m, 8, Kind::IPL, b"initrd");
    "extra-efi-program", "a further EFI program ran before the boot loader", |m| insert(m, 4, Kind::EFI_BOOT_SERVICES_APPLICATION, b"", OwnEvent::measure_unknown);
    "grub-configuration", "GRUB read another configuration", |m| unknown(m, 9, Kind::IPL, b"grub.cfg");
    "grub-command", "a command was typed into GRUB", |m| insert(m, 8, Kind::IPL, b"grub_cmd: set", |event| event.measure(b"grub_cmd: insmod evil\0".to_vec()));
    "mok-enrolled", "a machine owner's key was enrolled", |m| unknown(m, 14, Kind::IPL, b"MokList\0");
    "mok-revocations", "shim's own list of revocations is another one", |m| unknown(m, 14, Kind::IPL, b"MokListX");
    "mok-trusted", "machine owner's keys are trusted for modules", |m| unknown(m, 14, Kind::IPL, b"MokListTrusted");
    "no-handover", "the operating system never took over", |m| remove(m, 5, Kind::EFI_ACTION, b"Exit Boot Services Returned with Success");
    "nothing-booted", "the log ends with the firmware", |m| {
        let Some(log) = &mut m.log else { return false };
        let before = log.events.len();
        log.events.retain(|event| event.pcr <= 3 || event.pcr == 7);
        log.events.len() < before
    };
    "no-events", "a log without events", |m| {
        let Some(log) = &mut m.log else { return false };
        log.events.clear();
        true
    };

    // the kernel's command line
    "init-shell", "the kernel starts a shell instead of the system", |m| command_line(m, "init=/bin/sh");
    "rescue-mode", "the system starts in rescue mode", |m| command_line(m, "systemd.unit=rescue.target");
    "debug-shell", "systemd opens a debug shell", |m| command_line(m, "systemd.debug_shell=1");
    "ima-off", "IMA appraisal is switched off", |m| command_line(m, "ima_appraise=off ima_policy=");
    "lockdown-off", "the kernel is not locked down", |m| command_line(m, "lockdown=none");
    "module-signatures-off", "unsigned modules may be loaded", |m| command_line(m, "module.sig_enforce=0");
    "iommu-off", "devices may write everywhere", |m| command_line(m, "intel_iommu=off iommu=off");
    "kernel-debugger", "the kernel waits for a debugger", |m| command_line(m, "kgdboc=ttyS0 kgdbwait");
    "other-root", "another root file system is mounted", |m| command_line(m, "root=/dev/sdb1");

    // banks
    "sha1-only", "only the SHA-1 bank is quoted", |m| {
        m.selection = vec![(HashAlg::Sha1, (0..15).collect())];
        true
    };
    "sha1-vouches", "an event has no SHA-256 digest", |m| event(m, 4, Kind::EFI_BOOT_SERVICES_APPLICATION, b"", |event| {
        event.digests.retain(|(alg, _)| *alg != HashAlg::Sha256.id());
    });
    "pcr-left-out", "PCR 8 is not quoted", |m| {
        m.selection = vec![(HashAlg::Sha256, (0..15).filter(|pcr| *pcr != 8).collect())];
        true
    };
    "bank-added", "a further bank is quoted", |m| {
        m.selection.push((HashAlg::Sha1, vec![0]));
        true
    };

    // forged logs
    "hidden-secure-boot-off", "Secure Boot is off, and the log of a good boot is sent", |m| hidden(m, |m| variable(m, "SecureBoot", |_| vec![0]));
    "hidden-kernel", "another kernel runs, and the log of a good boot is sent", |m| hidden(m, |m| program(m, 2, OwnEvent::measure_unknown));
    "hidden-command-line", "other words, and the log of a good boot is sent", |m| hidden(m, |m| command_line(m, "init=/bin/sh"));
    "event-removed", "an event is missing from the log that is sent", |m| forged(m, |log| {
        let at = log.find(4, Kind::EFI_BOOT_SERVICES_APPLICATION, b"");
        at.is_some_and(|at| { log.events.remove(at); true })
    });
    "log-truncated", "the end of the log is missing", |m| forged(m, |log| log.events.pop().is_some());
    "log-cut-in-an-event", "the log ends within an event", |m| {
        m.told_log = m.log.as_ref().map(OwnLog::to_bytes).map(|mut bytes| { bytes.pop(); bytes });
        m.told_log.is_some()
    };
    "log-missing", "no log is sent", |m| { m.hide_log = true; true };
    "type-relabelled", "a program is called a harmless event; types are not measured", |m| forged(m, |log| {
        let at = log.find(4, Kind::EFI_BOOT_SERVICES_APPLICATION, b"");
        at.and_then(|at| log.at(at)).is_some_and(|event| { event.kind = Kind::EFI_ACTION; true })
    });
    "text-forged", "the log shows another command line than was measured", |m| {
        let good = m.log.clone();
        command_line(m, "init=/bin/sh") && {
            let Some((mut told, good)) = m.log.clone().zip(good) else { return false };
            for (event, good) in told.events.iter_mut().zip(&good.events) {
                event.data.clone_from(&good.data);
            }
            m.told_log = Some(told.to_bytes());
            true
        }
    };
    "variable-twice", "SecureBoot is measured a second time, as on", |m| insert(m, 7, Kind::EFI_VARIABLE_DRIVER_CONFIG, b"S\0e\0c\0u\0r\0e\0B\0o\0o\0t\0", |_| ());
    "hidden-separator", "a separator under another type", |m| forged(m, |log| {
        let at = log.find(4, Kind::SEPARATOR, b"");
        at.and_then(|at| log.at(at)).is_some_and(|event| { event.kind = Kind::EFI_ACTION; true })
    });
    "locality-forged", "the log claims another start of PCR 0", |m| forged(m, |log| {
        let Some(first) = log.events.first().cloned() else { return false };
        log.events.insert(0, OwnEvent { kind: Kind::NO_ACTION, data: b"StartupLocality\0\x03".to_vec(), pcr: 0, ..first });
        true
    });

    // while it runs
    "ima-violation", "a file changed while it was measured", |m| {
        entry(m, |entry| drop(entry.splice(4..24, [0; 20])), &[0x5a; 32], "/usr/bin/bash")
    };
    "kexec", "another kernel was started by kexec", |m| entry(m, |_| (), &[0x5e; 32], "boot_aggregate");
    "unknown-program", "an unknown program was run", |m| ran(m, "sha256", &[0x5a; 32], "/usr/bin/x");
    "program-in-tmp", "a known program was run from /tmp", |m| {
        let digest = HashAlg::Sha256.digest(&[b"/usr/bin/bash"]);
        ran(m, "sha256", digest.as_bytes(), "/tmp/bash")
    };
    "unsigned-module", "an unknown kernel module was loaded", |m| ran(m, "sha256", &[0x5b; 32], "/usr/lib/modules/6.1.0/extra/rootkit.ko");
    "weak-hash", "a program was measured with SHA-1", |m| ran(m, "sha1", &[0x5a; 20], "/usr/bin/x");
    "attest-replaced", "another program in the place of attest", |m| ran(m, "sha256", &[0x5c; 32], "/usr/bin/attest");
    "supervisor-replaced", "another program in the place of supervisor", |m| ran(m, "sha256", &[0x5d; 32], "/usr/bin/supervisor");
    "denied-program", "a program on the deny-list was run", |m| ran(m, "sha256", HashAlg::Sha256.digest(&[DENIED]).as_bytes(), "/usr/bin/bash");
    "many-unknown-programs", "more unknown programs than an appraisal lists", |m| {
        (0..40).all(|number| ran(m, "sha256", &[number; 32], &format!("/usr/bin/{number}")))
    };
    "script-in-home", "a file that is a program elsewhere was run from a home directory", |m| {
        let digest = HashAlg::Sha256.digest(&[b"/usr/bin/supervisor"]);
        ran(m, "sha256", digest.as_bytes(), "/home/u/supervisor")
    };
    "ima-list-missing", "no IMA list is sent", |m| { m.ima.take().is_some() };
    "ima-list-hidden", "IMA measured, and no list is sent", |m| {
        // After an earlier attestation there may be nothing new to hide.
        m.told_ima = m.ima.as_ref().filter(|list| !list.is_empty()).map(|_| Vec::new());
        m.told_ima.is_some()
    };
    "ima-entry-hidden", "an unknown program ran, and its entry is left out", |m| {
        m.told_ima = m.ima.as_ref().map(|list| list.concat());
        m.told_ima.is_some() && ran(m, "sha256", &[0x5a; 32], "/usr/bin/x")
    };
    "ima-of-another-boot", "IMA's first entry is the hash of other PCRs", |m| {
        if m.ima_from > 0 { return false; }
        let Some(first) = m.ima.as_mut().and_then(|list| list.first_mut()) else { return false };
        *first = ima_entry("sha256", &[0x5e; 32], "boot_aggregate");
        true
    };

    "ima-first-entry-missing", "the list that is sent begins with its second entry", |m| {
        let Some(ima) = m.ima.as_ref().filter(|ima| ima.len() > 1) else { return false };
        m.told_ima = Some(ima.get(1..).unwrap_or_default().concat());
        true
    };
    "ima-part-unasked", "a part of the list is sent as if the rest were known", |m| {
        m.ima_from = m.ima_from.saturating_add(1);
        m.ima.is_some()
    };
    "no-ima-reference", "the verifier has no reference sets: nothing is appraised", |m| {
        m.context.ima.as_mut().is_some_and(|ima| { ima.sets.clear(); true })
    };
    "ima-reference-not-at-hand", "the reference sets of the record are not at hand", |m| {
        m.context.ima.as_mut().and_then(|ima| ima.sets.first_mut()).is_some_and(|set| { set.digest = [0x5f; 32]; true })
    };
    "ima-reference-of-others", "another set has the place of the one with our programs", |m| {
        m.context.ima.as_mut().and_then(|ima| ima.sets.first_mut()).is_some_and(|set| { set.name = "other".into(); true })
    };

    // quote, clock and counters
    "replayed-quote", "a quote for an earlier nonce", |m| { m.quoted_nonce = Some(Nonce([9; 32])); true };
    "replayed-clock", "the TPM's clock is earlier than before", |m| {
        let Some(old) = &m.context.host.baseline else { return false };
        m.clock.clock = old.clock_ms.saturating_sub(1);
        m.clock.reset_count = old.reset_count;
        m.clock.restart_count = old.restart_count;
        true
    };
    "reset-count-back", "resetCount is lower than before: TPM2_Clear or a rollback", |m| {
        m.clock.reset_count = m.clock.reset_count.saturating_sub(1);
        m.context.host.baseline.as_ref().is_some_and(|old| m.clock.reset_count < old.reset_count)
    };
    "restart-count-back", "restartCount is lower than before", |m| {
        m.clock.restart_count = m.clock.restart_count.saturating_sub(1);
        m.context.host.baseline.as_ref().is_some_and(|old| m.clock.restart_count < old.restart_count)
    };
    "unseen-resets", "the host was reset three times without an attestation", |m| {
        m.clock.reset_count = m.clock.reset_count.saturating_add(3);
        m.context.host.baseline.is_some()
    };
    "old-tpm-firmware", "the TPM's firmware is an older one", |m| {
        m.firmware = m.firmware.checked_shr(8).unwrap_or(0);
        true
    };
    "late-answer", "the evidence comes after the challenge expired", |m| {
        m.context.now_ms = m.context.challenge.expires_ms;
        true
    };
    "another-key", "the quote is signed by another key", |m| { m.other_key = true; true };
    "another-hierarchy", "the quote's key is no child of the enrolled EK", |m| {
        // The qualified signer lies behind magic and type.
        m.odd_quote = Some(|quote| if let Some(byte) = quote.get_mut(20) { *byte = !*byte });
        true
    };
    "not-by-a-tpm", "what is signed does not begin as a TPM's own structures do", |m| {
        m.odd_quote = Some(|quote| if let Some(byte) = quote.first_mut() { *byte = 0 });
        true
    };
    "another-structure", "a certification is shown as a quote", |m| {
        m.odd_quote = Some(|quote| if let Some(byte) = quote.get_mut(5) { *byte = 0x17 });
        true
    };
    "forged-pcr", "a PCR value is sent that was not quoted", |m| { m.told_pcrs.insert(7, 0x11); true };
    "forged-run-log", "a run log that the TPM does not vouch for", |m| {
        m.run_log = Some(b"{}\n".to_vec());
        true
    };
    "cloned-tpm", "the run log lacks a receipt that another machine with this TPM has confirmed", |m| {
        let host = &mut m.context.host;
        let life = host.baseline.as_ref().map_or(1, |old| old.life);
        host.receipts = vec![1, 2].into_iter().map(|number| StoredReceipt {
            receipt: Receipt { number, random: [7; 16], mac: [8; 32] },
            status: ReceiptStatus::Confirmed,
            life,
        }).collect();
        host.baseline.is_some()
    };

    // who and what
    "simulated-tpm", "a software TPM", |m| !std::mem::replace(&mut m.context.host.simulated, true);
    "another-vendor", "the EK certificate leads to another root", |m| { m.context.host.ek_root = "CN=Other Root".into(); true };
    "another-host", "evidence of another host", |m| {
        m.context.host.host = HostId([0x43; 32]);
        m.context.challenge.host = HostId([0x43; 32]);
        true
    };
    "challenge-of-another-host", "an answer to another host's challenge", |m| { m.context.challenge.host = HostId([0x43; 32]); true };
    "suspended-host", "a suspended host asks", |m| { m.context.host.state = HostState::Suspended; true };
    "revoked-host", "a revoked host asks", |m| { m.context.host.state = HostState::Revoked; true };
    "pending-host", "a host asks before it was admitted", |m| { m.context.host.state = HostState::Pending; true };
    "swapped-workload", "the statement asks for another workload than the challenge", |m| {
        m.statement.release.as_mut().is_some_and(|release| { release.workload = WorkloadId([0x12; 32]); true })
    };
    "unknown-workload", "a workload that is not registered", |m| {
        m.context.workload_policy = None;
        m.context.workload.take().is_some()
    };
    "another-payload", "the workload's payload is another one", |m| {
        m.context.workload.as_mut().is_some_and(|workload| { workload.payload_root = PayloadRoot([0x23; 32]); true })
    };
    "another-workload-policy", "the workload's policy is another one", |m| {
        m.context.workload.as_mut().is_some_and(|workload| { workload.policy_digest = PolicyDigest([0x34; 32]); true })
    };

    // the verifier's own data
    "no-reference-values", "there are no reference values", |m| { m.context.reference = reference(Vec::new()); true };
    "reference-unreadable", "the reference values cannot be read", |m| { m.context.reference = b"{".to_vec(); true };
    "no-host-policy", "there is no host policy", |m| { m.context.host_policy = Vec::new(); true };
    "no-workload-policy", "the workload's policy is unreadable", |m| {
        m.context.workload_policy.as_mut().is_some_and(|policy| { policy.clear(); true })
    };
}
