//! The container's structure: what the reader refuses.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

mod support;

use countersign_sif::error::SifError;
use countersign_sif::format::{Arch, GROUP, Sif, data_type, fs_type};
use countersign_sif::layout::{Layout, Object, primary_extra};
use proptest::prelude::*;
use support::{DESCRIPTOR, TABLE, at, field, file, put};

/// A partition of 8192 bytes and two small objects.
fn small() -> Vec<u8> {
    let mut layout = Layout::new([9; 16], 5);
    let extra = primary_extra(fs_type::SQUASHFS, Arch::native());
    let object =
        Object { data_type: data_type::PARTITION, name: "", link: 0, group: GROUP | 1, extra: &extra, size: 8192 };
    let partition = layout.add(object).unwrap();
    assert_eq!(partition % 4096, 0);
    let mut end = 0;
    for (name, size) in [("a", 100), ("b", 50)] {
        end = layout.add(Object { data_type: data_type::GENERIC, name, extra: &[], size, ..object }).unwrap() + size;
    }
    let mut bytes = layout.head();
    bytes.resize(usize::try_from(end).unwrap(), 0x5a);
    bytes
}

fn refused(bytes: &[u8], why: &str) {
    match Sif::read(&file(bytes)) {
        Ok(_) => panic!("accepted, expected: {why}"),
        Err(error) => assert!(error.to_string().contains(why), "{error}: expected {why}"),
    }
}

fn with(at: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = small();
    put(&mut bytes, at, value);
    bytes
}

#[test]
fn the_small_one_is_fine() {
    let sif = Sif::read(&file(&small())).unwrap();
    assert_eq!(sif.objects.len(), 3);
    assert_eq!(sif.primary().unwrap().id, 1);
    assert_eq!(sif.named(data_type::GENERIC, "b").unwrap().size, 50);
    assert!(sif.named(data_type::JSON, "b").is_err());
    assert!(sif.named(data_type::GENERIC, "c").is_err());
}

#[test]
fn every_truncation_is_refused() {
    let bytes = small();
    let file = file(&bytes);
    for length in (0..bytes.len()).rev() {
        file.set_len(u64::try_from(length).unwrap()).unwrap();
        assert!(Sif::read(&file).is_err(), "{length} of {} bytes", bytes.len());
    }
}

#[test]
fn structure_that_others_might_read_differently_is_refused() {
    let offset = |id, value: u64| with(at(id, field::OFFSET), &value.to_le_bytes());
    let first = 32768u64;
    refused(&offset(2, first + 10), "objects 1 and 2 overlap");
    refused(&offset(3, first + 8192 + 99), "objects 2 and 3 overlap");
    refused(&offset(2, 0), "outside");
    refused(&offset(2, 4096), "outside");
    refused(&with(at(3, field::ID), &1u32.to_le_bytes()), "not unique");
    refused(&with(at(3, field::ID), &0u32.to_le_bytes()), "zero");
    refused(&with(at(3, field::USED), &[2]), "used");
    let mut two = with(at(2, field::TYPE), &data_type::PARTITION.to_le_bytes());
    put(&mut two, at(2, field::EXTRA), &primary_extra(fs_type::SQUASHFS, Arch::native()));
    refused(&two, "two primary partitions");
    let mut same = small();
    put(&mut same, at(3, field::NAME), b"a");
    let sif = Sif::read(&file(&same)).unwrap();
    assert!(sif.named(data_type::GENERIC, "a").unwrap_err().to_string().contains("several"));
    let none = with(at(1, field::EXTRA) + 4, &1i32.to_le_bytes());
    assert!(Sif::read(&file(&none)).unwrap().primary().is_err());
    refused(&with(32, b"SIF_magic\0"), "magic");
    refused(&with(42, b"02\0"), "version");
}

#[test]
fn numbers_that_are_negative_or_too_large_are_refused() {
    let numbers = [-1i64, i64::MIN, i64::MAX, i64::MAX - 4096, 1 << 40];
    for field in [field::OFFSET, field::SIZE] {
        for id in 1..=3 {
            for number in numbers {
                assert!(Sif::read(&file(&with(at(id, field), &number.to_le_bytes()))).is_err());
            }
        }
    }
    for number in [-1i64, i64::MIN] {
        assert!(Sif::read(&file(&with(at(1, field::PADDED), &number.to_le_bytes()))).is_err());
    }
    // Free, total, table offset, table size, data offset; then data size, which nothing is read by.
    for place in [80, 88, 96, 104, 112] {
        for number in numbers {
            assert!(
                Sif::read(&file(&with(place, &number.to_le_bytes()))).is_err(),
                "header field at {place}: {number}"
            );
        }
    }
    for number in [-1i64, i64::MIN] {
        assert!(Sif::read(&file(&with(120, &number.to_le_bytes()))).is_err());
    }
    // A table of another size than its count; one larger than any real one, that would fit.
    refused(&with(88, &49u64.to_le_bytes()), "49 descriptors");
    let mut huge = small();
    huge.resize(TABLE + DESCRIPTOR * 5000 + 4096, 0);
    let size = u64::try_from(DESCRIPTOR * 5000).unwrap();
    put(&mut huge, 88, &5000u64.to_le_bytes());
    put(&mut huge, 104, &size.to_le_bytes());
    put(&mut huge, 112, &(size + 4096).to_le_bytes());
    refused(&huge, "5000 descriptors");
    // A table inside the header.
    refused(&with(96, &100u64.to_le_bytes()), "between header and data");
}

#[test]
fn free_slots_and_deprecated_owners_are_read() {
    let mut bytes = small();
    put(&mut bytes, at(2, 0), &[0; DESCRIPTOR]);
    put(&mut bytes, at(3, 57), &1000u64.to_le_bytes());
    put(&mut bytes, at(3, 65), &1001u64.to_le_bytes());
    let sif = Sif::read(&file(&bytes)).unwrap();
    assert_eq!(sif.objects.iter().map(|object| object.id).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(sif.objects[1].owner[..8], 1000u64.to_le_bytes());
}

#[test]
fn not_a_sif() {
    for bytes in [&b""[..], b"x", &[0; 127], &[0; 128], &[0xff; 40_000]] {
        assert!(matches!(Sif::read(&file(bytes)), Err(SifError::Structure(_))));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever is accepted after any damage keeps the rules.
    #[test]
    fn damage_never_panics_and_never_breaks_the_rules(changes in prop::collection::vec((0usize..TABLE + 4 * DESCRIPTOR, any::<u8>()), 1..12)) {
        let mut bytes = small();
        for (at, value) in changes {
            bytes[at] = value;
        }
        if let Ok(sif) = Sif::read(&file(&bytes)) {
            let length = u64::try_from(bytes.len()).unwrap();
            for (n, a) in sif.objects.iter().enumerate() {
                prop_assert!(a.end() <= length);
                for b in &sif.objects[..n] {
                    prop_assert_ne!(a.id, b.id);
                    prop_assert!(a.size == 0 || b.size == 0 || a.end() <= b.offset || b.end() <= a.offset);
                }
            }
        }
    }

    #[test]
    fn noise_never_panics(mut bytes in prop::collection::vec(any::<u8>(), 128..8000)) {
        put(&mut bytes, 32, b"SIF_MAGIC\x0001\0");
        let _ = Sif::read(&file(&bytes));
    }
}
