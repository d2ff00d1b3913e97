//! The secret the nodes of a cluster share.

use std::fmt;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Shortest secret accepted, in bytes: 16 random letters are out of reach of guessing.
pub const SECRET_BYTES_MIN: usize = 16;
/// Longest secret accepted, in bytes.
pub const SECRET_BYTES_MAX: usize = 4096;
/// Bytes of a secret's file that are looked at: the secret and white space around it.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// Permission bits of "everybody else".
const MODE_OTHERS: u32 = 0o007;

/// The secret. Shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// The bytes, for keyed hashes only.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Whether the permissions of the configuration itself count for a secret inside it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Permissions {
    /// It was read from its file.
    Enforced,
    /// It is a text at hand.
    NotThisFile,
}

/// What is wrong, and the fix.
pub(crate) type Refusal = (String, String);

/// A fix line that makes a secret.
const HOW_TO_MAKE: &str = "make one: (umask 077; head -c 32 /dev/urandom | base64 > secret)";

/// A secret from its text; white space around it does not count.
pub(crate) fn from_text(text: &str) -> Result<Secret, Refusal> {
    let bytes = text.trim().as_bytes();
    if bytes.len() < SECRET_BYTES_MIN {
        return Err((
            format!(
                "the secret has {} characters, {SECRET_BYTES_MIN} are needed",
                bytes.len()
            ),
            HOW_TO_MAKE.into(),
        ));
    }
    if bytes.len() > SECRET_BYTES_MAX {
        return Err((
            format!("the secret is longer than {SECRET_BYTES_MAX} characters"),
            HOW_TO_MAKE.into(),
        ));
    }
    Ok(Secret(bytes.to_vec()))
}

/// A secret from its own file.
pub(crate) fn from_file(path: &Path) -> Result<Secret, Refusal> {
    // A device without end, named by mistake, is not read to its end.
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text))
        .map_err(|e| {
            (
                format!("the secret file {} cannot be read: {e}", path.display()),
                HOW_TO_MAKE.into(),
            )
        })?;
    private(path)?;
    from_text(&text)
}

/// Refuses a file that everybody may read.
pub(crate) fn private(path: &Path) -> Result<(), Refusal> {
    let mode = std::fs::metadata(path)
        .map_err(|e| {
            (
                format!("{} cannot be examined: {e}", path.display()),
                "make it readable".into(),
            )
        })?
        .permissions()
        .mode();
    if mode & MODE_OTHERS != 0 {
        return Err((
            format!(
                "{} holds the secret and every user can get at it (mode {:04o})",
                path.display(),
                mode & 0o7777
            ),
            format!("chmod 600 {}", path.display()),
        ));
    }
    Ok(())
}
