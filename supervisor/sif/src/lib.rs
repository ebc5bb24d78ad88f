//! SIF images: reader, writer, DSSE signatures, LUKS2 payloads and hash trees.
//!
//! A protected image is a SIF that stock SingularityCE and Apptainer can open with the owner's escrow key, and that a host opens only with a
//! released volume key, block by block under a signed hash tree.
//!
//! | module | what it owns |
//! |---|---|
//! | [`format`], [`layout`] | header and descriptors: a reader that trusts neither, a writer |
//! | [`dsse`], [`pgp`] | signatures over the whole object group |
//! | [`binding`] | payload root, policy digest, workload id |
//! | [`verity`], [`xts`], [`view`] | the hash tree, the cipher, and the decrypted view over both |
//! | [`luks`], [`escrow`] | the container's header and the owner's way back |
//! | [`input`] | the signatures of a plain image, before it is protected |
//! | [`squashfs`], [`mod@protect`], [`image`] | making and opening protected images |

pub mod binding;
pub mod dsse;
pub mod error;
pub mod escrow;
pub mod format;
pub mod image;
pub mod input;
pub mod layout;
pub mod luks;
mod oci;
pub mod pgp;
mod pipeline;
pub mod protect;
pub mod squashfs;
pub mod verity;
pub mod view;
pub mod xts;

pub use error::SifError;
pub use image::Image;
pub use view::View;
