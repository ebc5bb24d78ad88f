use countersign_tpm::alg::{Digest, HashAlg};

use super::synthetic::{Synthetic, d_ng, n_ng};
use super::*;
use crate::limits;

const LIST: &[u8] = include_bytes!("../../../../fixtures/nosb-direct-k6.1-sha384-imapad/ima_binary");
const PCRS: &str = include_str!("../../../../fixtures/nosb-direct-k6.1-sha384-imapad/PCRS.json");
const LONG: &[u8] = include_bytes!("../../../../fixtures/sb-snakeoil-uki-systemd-pcrphase-ima/ima_binary");
const LONG_PCRS: &str = include_str!("../../../../fixtures/sb-snakeoil-uki-systemd-pcrphase-ima/PCRS.json");

fn quoted(pcrs: &str) -> Vec<Digest> {
    let pcrs: serde_json::Value = serde_json::from_str(pcrs).unwrap();
    let value = |alg: HashAlg| {
        let text = pcrs[alg.name()]["10"].as_str()?;
        Digest::new(alg, &hex::decode(text).unwrap())
    };
    HashAlg::ALL.into_iter().filter_map(value).collect()
}

fn start(quoted: &[Digest]) -> Vec<Digest> {
    quoted.iter().map(|digest| Digest::filled(digest.alg(), 0)).collect()
}

fn zero(alg: HashAlg) -> Digest {
    Digest::filled(alg, 0)
}

/// One entry of every template that the kernel has, and one of a format string.
fn every_template() -> Synthetic {
    let mut list = Synthetic::default();
    let (d, n): (&[u8], &[u8]) = (&d_ng("sha256", &[1; 32]), &n_ng("/usr/bin/true"));
    let file: &[u8] = b"ima:sha512:\0................................................................";
    let verity: &[u8] = b"verity:sha256:\0................................";
    list.push("ima-ng", &[&d_ng("sha256", &[9; 32]), &n_ng("boot_aggregate")]);
    list.push_old(&[2; 20], "/sbin/init");
    list.push_old(&[3; 20], &"n".repeat(255));
    list.push_old(&[3; 20], "");
    list.push("ima-ngv2", &[file, n]);
    list.push("ima-sig", &[d, n, b"\x03\x02signature"]);
    list.push("ima-sigv2", &[verity, n, b""]);
    list.push(
        "ima-buf",
        &[&d_ng("sha256", HashAlg::Sha256.digest(&[b"cmdline"]).as_bytes()), &n_ng("kexec"), b"cmdline"],
    );
    list.push("ima-modsig", &[d, n, b"", &d_ng("sha384", &[4; 48]), b"pkcs7"]);
    list.push("ima-modsig", &[d, n, b"", b"", b""]);
    list.push(
        "evm-sig",
        &[d, n, b"\x05sig", b"security.selinux\0", &[9, 0, 0, 0], b"label", &[0; 4], &[0; 4], &[0xed, 0x81]],
    );
    list.push("d-ng|n-ng|iuid|buf", &[d, n, &[1, 0, 0, 0], b"buffer"]);
    list.push("d|n", &[&[5; 16], n]);
    list.push("n-ng", &[n]);
    list.push_violation("/var/log/wtmp");
    for hash in KernelHash::all() {
        list.push("ima-ng", &[&d_ng(hash.name(), &vec![7; hash.size()]), n]);
    }
    list
}

#[test]
fn recorded_lists_replay_in_every_bank() {
    // Kernel 6.1 pads its SHA-384 bank.
    for (list, pcrs, violations, padded) in [(LIST, PCRS, 0, &[HashAlg::Sha384][..]), (LONG, LONG_PCRS, 1, &[])] {
        let quoted = quoted(pcrs);
        assert_eq!(quoted.len(), 3);
        let prefix = replay_to(list, &start(&quoted), &quoted).unwrap();
        assert_eq!(prefix.bytes, list.len());
        assert_eq!((prefix.violations, prefix.elsewhere), (violations, 0));
        assert_eq!(prefix.padded, padded);
        for frame in frames(list).unwrap() {
            assert!(frame.unwrap().is_consistent());
        }
    }
}

#[test]
fn recorded_lists_are_the_same_in_ascii() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/samples");
    let Ok(samples) = std::fs::read_dir(dir) else {
        println!("skipped: no recorded samples beside the checkout");
        return;
    };
    let mut compared = 0;
    for sample in samples {
        let dir = sample.unwrap().path();
        let (Ok(binary), Ok(ascii)) = (std::fs::read(dir.join("ima_binary")), std::fs::read(dir.join("ima_ascii")))
        else {
            continue;
        };
        assert!(looks_ascii(&ascii) && !looks_ascii(&binary));
        // Some lists grew between the two reads.
        let made = to_binary(&ascii).unwrap();
        let shorter = made.len().min(binary.len());
        assert!(made[..shorter] == binary[..shorter], "{}", dir.display());
        compared += 1;
    }
    assert!(compared > 5);
}

#[test]
fn every_template_of_the_kernel() {
    let list = every_template();
    let all: Vec<Entry<'_>> = entries(&list.bytes).unwrap().map(Result::unwrap).collect();
    assert_eq!(all.len(), 15 + 23);
    for alg in HashAlg::ALL {
        let quoted = list.pcr(zero(alg));
        let prefix = replay_to(&list.bytes, &[zero(alg)], &[quoted]).unwrap();
        assert_eq!((prefix.bytes, prefix.entries), (list.bytes.len(), 38));
        assert!(prefix.padded.is_empty());
    }
    let show = |entry: &Entry<'_>| {
        format!(
            "{:?} {} {} {}",
            entry.digest_kind,
            String::from_utf8_lossy(entry.digest_alg),
            entry.digest.len(),
            String::from_utf8_lossy(entry.path)
        )
    };
    assert_eq!(show(&all[1]), "Unsaid sha1 20 /sbin/init");
    assert_eq!(show(&all[4]), "File sha512 64 /usr/bin/true");
    assert_eq!(show(&all[6]), "Verity sha256 32 /usr/bin/true");
    assert_eq!(show(&all[12]), "Unsaid md5 16 /usr/bin/true");
    assert_eq!(show(&all[13]), "Unsaid  0 /usr/bin/true");
    assert_eq!(all[5].signature, b"\x03\x02signature");
    assert_eq!((all[7].buffer, all[7].buffer_is_digested()), (Some(&b"cmdline"[..]), Some(true)));
    assert_eq!(all[11].buffer_is_digested(), Some(false));
    assert_eq!(all[8].field(Field::Modsig), Some(&b"pkcs7"[..]));
    assert_eq!(all[10].field(Field::Imode), Some(&[0xed, 0x81][..]));
    assert_eq!((all[1].field(Field::N), all[1].field(Field::Sig)), (Some(&b"/sbin/init"[..]), None));
    assert!(all[14].is_violation());
    assert!(frames(&list.bytes).unwrap().all(|frame| frame.unwrap().is_consistent()));
}

#[test]
fn plain_entries_say_what_all_their_fields_say() {
    let mut list = every_template();
    list.push("ima-sig", &[&d_ng("sha256", &[1; 32]), &n_ng("/a"), b""]);
    let mut plain = 0;
    for bytes in [&list.bytes[..], LONG] {
        for entry in entries(bytes).unwrap().map(Result::unwrap) {
            let Some((digest, path)) = entry.frame().plain() else { continue };
            assert_eq!((&digest[..], path, entry.digest_alg), (entry.digest, entry.path, &b"sha256"[..]));
            assert!(!entry.is_violation());
            plain += 1;
        }
    }
    assert!(plain > 500, "{plain}");
    // Whatever is not formed as it should be is not plain.
    let mut one = Synthetic::default();
    one.push("ima-sig", &[&d_ng("sha256", &[1; 32]), &n_ng("/a"), b"sig"]);
    for at in 37..one.bytes.len() {
        for wrong in [0, 0xff, one.bytes[at].wrapping_add(1), one.bytes[at].wrapping_sub(1)] {
            let mut changed = one.bytes.clone();
            changed[at] = wrong;
            let Some(Ok(frame)) = frames(&changed).unwrap().next() else { continue };
            // A NUL within the name is the one thing that is not looked for.
            let formed = entries(&changed).unwrap().next().unwrap();
            let nul = formed.as_ref().is_err_and(|e| e.to_string().contains("NUL within"));
            assert!(frame.plain().is_none() || formed.is_ok() || nul, "{at} {wrong}");
        }
    }
}

#[test]
fn the_old_template_hashes_256_bytes_of_name() {
    let mut list = Synthetic::default();
    list.push_old(&[2; 20], "/sbin/init");
    // SHA-1 over digest || name || NULs, by another program.
    let frame = frames(&list.bytes).unwrap().next().unwrap().unwrap();
    let mut hashed = vec![2; 20];
    hashed.extend(b"/sbin/init");
    hashed.resize(276, 0);
    assert_eq!(frame.extends(HashAlg::Sha1), HashAlg::Sha1.digest(&[&hashed]));
    assert_eq!(frame.extends(HashAlg::Sha256), HashAlg::Sha256.digest(&[&hashed]));
}

#[test]
fn padded_banks_of_older_kernels() {
    let list = every_template();
    let padded = |alg: HashAlg| {
        frames(&list.bytes)
            .unwrap()
            .map(Result::unwrap)
            .fold(zero(alg), |value, frame| value.extend(frame.extends_padded(alg).as_bytes()))
    };
    // A kernel before 5.8 pads in every bank; a later one where it lacks the hash.
    let all = [list.pcr(zero(HashAlg::Sha1)), padded(HashAlg::Sha256), padded(HashAlg::Sha384)];
    let prefix = replay_to(&list.bytes, &start(&all), &all).unwrap();
    assert_eq!(prefix.padded, [HashAlg::Sha256, HashAlg::Sha384]);
    let mixed = [list.pcr(zero(HashAlg::Sha256)), padded(HashAlg::Sha512)];
    assert_eq!(replay_to(&list.bytes, &start(&mixed), &mixed).unwrap().padded, [HashAlg::Sha512]);
    // The padded hash is computed: a list whose logged SHA-1 hash is that of other fields does not pass for it.
    let path = list.bytes.windows(10).position(|window| window == b"/sbin/init").unwrap();
    let mut changed = list.bytes.clone();
    changed[path] = b'x';
    let only = [padded(HashAlg::Sha384)];
    assert!(replay_to(&changed, &start(&only), &only).is_err());
}

#[test]
fn one_prefix_for_all_banks() {
    let list = every_template();
    let mut shorter = Synthetic::default();
    let cut = entries(&list.bytes).unwrap().map(Result::unwrap).nth(20).unwrap();
    let at = cut.frame().data().as_ptr().addr() - list.bytes.as_ptr().addr();
    shorter.bytes = list.bytes[..at - 4 - cut.frame().template.len() - 28].to_vec();
    let (sha1, sha256) = (zero(HashAlg::Sha1), zero(HashAlg::Sha256));
    for (first, second) in [(&list, &shorter), (&shorter, &list)] {
        let quoted = [first.pcr(sha1), second.pcr(sha256)];
        assert!(matches!(replay_to(&list.bytes, &[sha1, sha256], &quoted), Err(ImaReplayError::NoPrefix { .. })));
    }
    let quoted = [shorter.pcr(sha1), shorter.pcr(sha256)];
    assert_eq!(replay_to(&list.bytes, &[sha1, sha256], &quoted).unwrap().entries, 20);
}

#[test]
fn an_increment_goes_on_from_a_value() {
    let list = every_template();
    let mut longer = list.clone();
    longer.push_file("/usr/bin/new", &[8; 32]);
    let zero = zero(HashAlg::Sha256);
    let (before, after) = (list.pcr(zero), longer.pcr(zero));
    let prefix = replay_to(&longer.bytes[list.bytes.len()..], &[before], &[after]).unwrap();
    assert_eq!(prefix.entries, 1);
    assert_eq!(replay_to(b"", &[before], &[before]).unwrap().entries, 0);
    assert!(replay_to(b"", &[before], &[after]).is_err());
}

#[test]
fn entries_of_another_pcr_are_counted() {
    let mut list = every_template();
    let quoted = list.pcr(zero(HashAlg::Sha256));
    let mut other = Synthetic::default();
    other.push_file("/other", &[1; 32]);
    other.bytes[0] = 11;
    list.bytes.splice(0..0, other.bytes);
    let prefix = replay_to(&list.bytes, &[zero(HashAlg::Sha256)], &[quoted]).unwrap();
    assert_eq!((prefix.elsewhere, prefix.entries), (1, 39));
}

#[test]
fn boot_aggregate_of_both_kinds() {
    let pcr = |alg: HashAlg| move |n: u8| Some(Digest::filled(alg, n));
    let sha256 = boot_aggregates(HashAlg::Sha256, pcr(HashAlg::Sha256));
    let all: Vec<u8> = (0..10u8).flat_map(|n| [n; 32]).collect();
    assert_eq!(sha256, [HashAlg::Sha256.digest(&[&all[..256]]), HashAlg::Sha256.digest(&[&all])]);
    assert_eq!(boot_aggregates(HashAlg::Sha1, pcr(HashAlg::Sha1)).len(), 1);
    assert!(boot_aggregates(HashAlg::Sha256, |n| (n != 3).then_some(zero(HashAlg::Sha256))).is_empty());
    // A recorded host's first entry is the hash of its own PCRs.
    let recorded: serde_json::Value = serde_json::from_str(LONG_PCRS).unwrap();
    let value = |n: u8| Digest::new(HashAlg::Sha256, &hex::decode(recorded["sha256"][n.to_string()].as_str()?).ok()?);
    let first = entries(LONG).unwrap().next().unwrap().unwrap();
    assert_eq!((first.path, first.digest_alg), (BOOT_AGGREGATE, &b"sha256"[..]));
    assert!(boot_aggregates(HashAlg::Sha256, value).iter().any(|digest| digest.as_bytes() == first.digest));
}

#[test]
fn what_lies_beyond_the_prefix_is_not_read() {
    let quoted = quoted(LONG_PCRS);
    let beyond = [LONG, b"no entry at all, and it is never looked at"].concat();
    let mut seen = Vec::new();
    let prefix = replay_each(&beyond, &start(&quoted), &quoted, |frame| seen.push(frame.index)).unwrap();
    assert_eq!(prefix.bytes, LONG.len());
    let count = prefix.entries;
    assert_eq!(seen, (0..count).collect::<Vec<_>>());
}

#[test]
fn altered_or_shortened_lists_do_not_replay() {
    let quoted = quoted(LONG_PCRS);
    for entry in entries(LONG).unwrap().map(Result::unwrap).filter(|entry| !entry.is_violation()).step_by(50) {
        let at = entry.path.as_ptr().addr() - LONG.as_ptr().addr();
        let mut changed = LONG.to_vec();
        changed[at] ^= 1;
        assert!(replay_to(&changed, &start(&quoted), &quoted).is_err(), "entry {}", entry.index);
    }
    assert!(replay_to(&LONG[..LONG.len() - 1], &start(&quoted), &quoted).is_err());
    let mut other = quoted.clone();
    other[0] = Digest::filled(other[0].alg(), 1);
    assert!(matches!(replay_to(LONG, &start(&quoted), &other), Err(ImaReplayError::NoPrefix { .. })));
}

/// Ends of the entries of a list.
fn ends(list: &[u8]) -> Vec<usize> {
    let mut frames = frames(list).unwrap();
    let mut ends = vec![0];
    while frames.next().is_some() {
        ends.push(frames.offset());
    }
    ends
}

#[test]
fn every_prefix() {
    for list in [LIST, &every_template().bytes] {
        let ends = ends(list);
        for end in 0..list.len() {
            let all: Result<Vec<_>, _> = entries(&list[..end]).unwrap().collect();
            assert_eq!(all.is_ok(), ends.contains(&end), "{end}");
        }
    }
}

#[test]
fn every_length_field() {
    let list = every_template().bytes;
    let whole: Vec<Entry<'_>> = entries(&list).unwrap().map(Result::unwrap).collect();
    let mut lengths = 0;
    for entry in &whole {
        let data = entry.frame().data();
        let at = data.as_ptr().addr() - list.as_ptr().addr();
        // In front of the data and of the name stand their lengths; within the data one in front of each field.
        let name = at - entry.frame().template.len() - if entry.frame().template == b"ima" { 4 } else { 8 };
        let mut places = vec![name];
        if entry.frame().template == b"ima" {
            places.push(at + 20);
        } else {
            places.push(at - 4);
            let mut field = 0;
            while field < data.len() {
                places.push(at + field);
                field += 4 + usize::try_from(u32::from_le_bytes(data[field..field + 4].try_into().unwrap())).unwrap();
            }
        }
        for place in places {
            let length = u32::from_le_bytes(list[place..place + 4].try_into().unwrap());
            for wrong in [length.wrapping_sub(1), length.wrapping_add(1), u32::MAX, u32::MAX - 3, 1 << 31, 1 << 24] {
                let mut changed = list.clone();
                changed[place..place + 4].copy_from_slice(&wrong.to_le_bytes());
                let read: Vec<_> = entries(&changed).unwrap().collect();
                let bad = read.last().unwrap();
                // Only the name of the old template has no end of its own: another length moves what follows.
                assert!(bad.is_err(), "entry {} length at {place}: {wrong}", entry.index);
                if wrong > 1 << 20 {
                    let error = bad.as_ref().unwrap_err();
                    assert_eq!(error.index, entry.index);
                    assert!(matches!(
                        error.malformed.reason,
                        crate::codec::Reason::Truncated { .. } | crate::codec::Reason::TooLarge { .. }
                    ));
                }
                lengths += 1;
            }
        }
    }
    assert!(lengths > 700, "{lengths}");
}

#[test]
fn every_byte() {
    let list = every_template().bytes;
    for at in 0..list.len() {
        for value in [0, 0xff, list[at] ^ 1] {
            let mut changed = list.clone();
            changed[at] = value;
            let _: Vec<_> = entries(&changed).unwrap().collect();
        }
    }
    let mut wrong = LIST.to_vec();
    wrong[0] = 24;
    assert!(entries(&wrong).unwrap().next().unwrap().is_err(), "PCR 24");
}

#[test]
fn four_gigabytes_declared_cost_nothing() {
    let mut list = Synthetic::default();
    list.push_file("/a", &[1; 32]);
    list.bytes.truncate(28 + 6 + 4);
    list.bytes[34..38].copy_from_slice(&u32::MAX.to_le_bytes());
    let error = entries(&list.bytes).unwrap().next().unwrap().unwrap_err();
    assert_eq!(
        error.to_string(),
        "IMA entry 0: template data at byte 38: truncated: needs 4294967295 bytes, 0 are left"
    );
    assert_eq!(extent(&list.bytes), Ok(Extent::Bytes(38 + u64::from(u32::MAX))));
}

#[test]
fn a_list_over_the_budget_is_refused() {
    let big = vec![0; limits::IMA_LIST + 1];
    let error = entries(&big).map(drop).unwrap_err();
    assert_eq!(error.to_string(), "IMA entry 0: IMA list at byte 0: 67108865 is over the limit of 67108864");
    assert!(replay_to(&big, &[zero(HashAlg::Sha256)], &[Digest::filled(HashAlg::Sha256, 1)]).is_err());
}

#[test]
fn extents_tell_the_same_ends() {
    let list = every_template().bytes;
    let ends = ends(&list);
    for (begin, end) in ends.iter().zip(&ends[1..]) {
        let entry = &list[*begin..*end];
        let mut known = 0;
        loop {
            match extent(&entry[..known]).unwrap() {
                Extent::Needs(more) => {
                    assert!(more > known && more <= entry.len());
                    known = more;
                }
                Extent::Bytes(bytes) => {
                    assert_eq!(bytes, u64::try_from(entry.len()).unwrap());
                    break;
                }
            }
        }
    }
    let mut long = list.clone();
    long[24..28].copy_from_slice(&256u32.to_le_bytes());
    assert!(extent(&long).is_err());
}

#[test]
fn ascii_lines() {
    let hash = "00".repeat(20);
    let digest = "11".repeat(32);
    let good = [
        format!("10 {hash} ima {} /sbin/init", "22".repeat(20)),
        format!("10 {hash} ima-ng sha256:{digest} /a"),
        format!("  9 {hash} ima-ngv2 verity:sha256:{digest} /a"),
        format!("10 {hash} ima-sig sha256:{digest} /a "),
        format!("10 {hash} ima-sig sha256:{digest} /a 0302"),
        format!("10 {hash} ima-modsig sha256:{digest} /a   "),
        format!("10 {hash} evm-sig sha256:{digest} /a 05 security.selinux|security.ima 0900 aa 0 0 33261"),
    ];
    for line in &good {
        let binary = to_binary(line.as_bytes()).unwrap();
        let all: Result<Vec<_>, _> = entries(&binary).unwrap().collect();
        assert_eq!(all.unwrap().len(), 1, "{line}");
        for end in 0..line.len() {
            let _ = to_binary(&line.as_bytes()[..end]);
        }
    }
    let binary = to_binary(good[6].as_bytes()).unwrap();
    let entry = entries(&binary).unwrap().next().unwrap().unwrap();
    assert_eq!(entry.field(Field::Imode), Some(&33261u16.to_le_bytes()[..]));
    let bad = [
        ("\n", "pcr at byte 0: not a decimal number"),
        ("10", "template hash"),
        ("10 00 ima-ng", "template hash at byte 0: not 20 bytes"),
        (&format!("10 {hash} ima-nope x y"), "template name"),
        (&format!("10 {hash} ima-ng sha256:11 /a"), "another length"),
        (&format!("10 {hash} ima-ng sha256:{digest}"), "n-ng at byte 0: the line ends before it"),
        (&format!("10 {hash} ima-ng sha256:{digest} /a b"), "more fields"),
        (&format!("10 {hash} ima-ng sha256:{digest} /a\n\n"), "IMA entry 1"),
    ];
    for (line, want) in bad {
        let error = to_binary(line.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(want), "{line}: {error}");
    }
}
