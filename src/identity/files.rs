//! Keys and certificates on the disk, as PEM. What holds a key is for its owner
//! alone, and a file that others may read is refused.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use rcgen::KeyPair;
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{PemObject as _, SectionKind},
};

/// The largest file taken: a chain, some authorities and a key are a few KiB.
const MAX_FILE: u64 = 1024 * 1024;

/// Why a file of keys or certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read or written.
    #[error("cannot use {}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others than its owner may read or change it.
    #[error("{} is not private: its mode is {mode:04o}", file.display())]
    Loose {
        /// The file.
        file: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Neither root nor whoever runs this owns it, so somebody else can change it.
    #[error("{} belongs to another user, of id {owner}", file.display())]
    Foreign {
        /// The file.
        file: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// It is no PEM.
    #[error("{} is not a PEM file: {why}", file.display())]
    NotPem {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// What is looked for is not in it.
    #[error("{} holds no {what}", file.display())]
    Missing {
        /// The file.
        file: PathBuf,
        /// What is looked for.
        what: &'static str,
    },
}

impl Error {
    /// The file is not there.
    pub fn not_there(file: &Path) -> Self {
        Self::Io {
            file: file.to_owned(),
            source: io::Error::from_raw_os_error(rustix::io::Errno::NOENT.raw_os_error()),
        }
    }
}

/// What a PEM file holds.
#[derive(Debug, Default)]
pub struct Pem {
    /// In the order of the file.
    pub certificates: Vec<CertificateDer<'static>>,
    /// The key, if there is one.
    pub key: Option<PrivateKeyDer<'static>>,
}

impl Pem {
    /// Reads a file that is to hold a key, which nobody else may read. `None` if
    /// it is not there.
    pub fn read_secret(file: &Path) -> Result<Option<Self>, Error> {
        match secret(file)? {
            Some(text) => Ok(Some(Self::parse(&text, file)?)),
            None => Ok(None),
        }
    }

    /// Reads the certificates of a file; `None` if it is not there.
    pub fn read(file: &Path) -> Result<Option<Self>, Error> {
        match bounded(file) {
            Ok(text) => Ok(Some(Self::parse(&text, file)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Io {
                file: file.to_owned(),
                source,
            }),
        }
    }

    /// Reads what stands in `text`; `file` is for messages.
    pub fn parse(text: &[u8], file: &Path) -> Result<Self, Error> {
        let mut found = Self::default();
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(text) {
            let (kind, bytes) = section.map_err(|error| Error::NotPem {
                file: file.to_owned(),
                why: error.to_string(),
            })?;
            match kind {
                SectionKind::Certificate => found.certificates.push(bytes.into()),
                SectionKind::PrivateKey => {
                    found.key = Some(PrivateKeyDer::Pkcs8(bytes.into()));
                }
                SectionKind::RsaPrivateKey => {
                    found.key = Some(PrivateKeyDer::Pkcs1(bytes.into()));
                }
                SectionKind::EcPrivateKey => found.key = Some(PrivateKeyDer::Sec1(bytes.into())),
                _ => {}
            }
        }
        Ok(found)
    }
}

/// Reads a file that holds a secret; `None` if it is not there.
///
/// # Errors
///
/// Also if others than its owner may read or change it, or that is neither root nor
/// who runs this.
pub fn secret(file: &Path) -> Result<Option<Vec<u8>>, Error> {
    let at = |source| Error::Io {
        file: file.to_owned(),
        source,
    };
    let opened = match File::open(file) {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at(error)),
    };
    // Of what was opened, not of what the name means a moment later.
    let about = opened.metadata().map_err(at)?;
    let (mode, owner) = (about.mode() & 0o7777, about.uid());
    if ![0, rustix::process::geteuid().as_raw()].contains(&owner) {
        return Err(Error::Foreign {
            file: file.to_owned(),
            owner,
        });
    }
    if mode & 0o077 != 0 {
        return Err(Error::Loose {
            file: file.to_owned(),
            mode,
        });
    }
    read(opened).map(Some).map_err(at)
}

fn bounded(file: &Path) -> io::Result<Vec<u8>> {
    read(File::open(file)?)
}

fn read(file: File) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut text)?;
    match text.len() as u64 > MAX_FILE {
        true => Err(io::ErrorKind::FileTooLarge.into()),
        false => Ok(text),
    }
}

/// Writes certificates, and a key with them, for the owner alone: all or
/// nothing, and on the disk when it returns.
pub fn write_secret(
    file: &Path,
    certificates: &[CertificateDer<'_>],
    key: Option<&KeyPair>,
) -> Result<(), Error> {
    let mut text = key.map(KeyPair::serialize_pem).unwrap_or_default();
    text.push_str(&pem(certificates));
    write(file, text.as_bytes())
}

/// Certificates as PEM.
pub fn pem(certificates: &[CertificateDer<'_>]) -> String {
    let encode = |certificate: &CertificateDer<'_>| {
        let base64 = data_encoding::BASE64.encode(certificate);
        let lines: Vec<&str> = base64
            .as_bytes()
            .chunks(64)
            .map(|line| std::str::from_utf8(line).unwrap_or_default())
            .collect();
        format!(
            "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
            lines.join("\n")
        )
    };
    certificates.iter().map(encode).collect()
}

/// Writes a file for its owner alone: all or nothing, and on the disk when it
/// returns.
pub fn write(file: &Path, bytes: &[u8]) -> Result<(), Error> {
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let write = || {
        // Made with mode 0600.
        let mut new = tempfile::NamedTempFile::new_in(folder)?;
        new.as_file()
            .set_permissions(fs::Permissions::from_mode(0o600))?;
        new.write_all(bytes)?;
        new.as_file().sync_all()?;
        new.persist(file)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|source| Error::Io {
        file: file.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key.pem");
        assert!(secret(&file).unwrap().is_none());
        write(&file, b"x").unwrap();
        assert_eq!(secret(&file).unwrap().unwrap(), b"x");
        for mode in [0o644, 0o640, 0o620, 0o601] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            let error = secret(&file).unwrap_err();
            assert!(matches!(error, Error::Loose { .. }), "{mode:o}");
            assert!(error.to_string().contains("not private"), "{error}");
        }
    }

    #[test]
    fn what_belongs_to_another_user_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key.pem");
        write(&file, b"x").unwrap();
        let stranger = rustix::process::geteuid().as_raw() + 1;
        if std::os::unix::fs::chown(&file, Some(stranger), None).is_ok() {
            let error = secret(&file).unwrap_err();
            assert!(
                matches!(error, Error::Foreign { owner, .. } if owner == stranger),
                "{error}"
            );
        } else {
            // Nobody but root gives files away; and what is root's is taken.
            let theirs = Path::new("/etc/shadow");
            let error = secret(theirs).unwrap_err();
            assert!(!matches!(error, Error::Foreign { .. }), "{error}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key.pem");
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateDer::from(vec![7; 100]);
        write_secret(&file, std::slice::from_ref(&certificate), Some(&key)).unwrap();
        let pem = Pem::read_secret(&file).unwrap().unwrap();
        assert_eq!(pem.certificates, [certificate]);
        let read = KeyPair::try_from(&pem.key.unwrap()).unwrap();
        assert_eq!(read.serialized_der(), key.serialized_der());
        write(&file, b"-----BEGIN CERTIFICATE-----\n*\n").unwrap();
        assert!(matches!(
            Pem::read_secret(&file).unwrap_err(),
            Error::NotPem { .. }
        ));
        File::create(&file).unwrap().set_len(MAX_FILE + 1).unwrap();
        assert!(Pem::read(&file).is_err());
    }
}
