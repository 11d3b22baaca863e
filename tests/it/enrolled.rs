//! Certificates of an authority that all clusters here share, written where each
//! role has its own: so a test need not wait until one has joined.

use std::{
    fs,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use jobctl::identity::{
    Identity, Role,
    ca::{Ca, PublicKey, Request},
    files,
    tls::Credentials,
};
use uuid::Uuid;

/// The authority.
pub(crate) fn authority() -> &'static Ca {
    static CA: OnceLock<Ca> = OnceLock::new();
    CA.get_or_init(|| Ca::create("test").unwrap())
}

pub(crate) fn identity(role: Role, name: &str) -> Identity {
    Identity {
        cluster: authority().cluster().to_owned(),
        role,
        id: Uuid::new_v4(),
        name: name.to_owned(),
    }
}

/// Of somebody new.
pub(crate) fn credentials(role: Role, name: &str) -> Credentials {
    let who = identity(role, name);
    authority().credentials(&who, &[]).unwrap()
}

/// The data folder of a scheduler, with the authority in it.
pub(crate) fn scheduler(data: &Path) -> PathBuf {
    make(data);
    let file = data.join("ca.pem");
    if !file.exists() {
        authority().store(&file).unwrap();
    }
    data.to_owned()
}

/// The data folder of a worker, which has joined.
pub(crate) fn worker(data: &Path, name: &str) -> PathBuf {
    make(data);
    let file = data.join("identity.pem");
    if !file.exists() {
        write(Role::Worker, name, &file, &data.join("ca.pem"));
        files::write(&data.join("scheduler"), b"127.0.0.1:1\n").unwrap();
    }
    data.to_owned()
}

/// A client's folder with a context that reaches `server` as an admin.
pub(crate) fn client(dir: &Path, server: &str) {
    let text = format!(
        "[contexts.test]\nserver = \"{server}\"\nca_file = \"test.ca.pem\"\n\
         identity_file = \"test.pem\"\n"
    );
    fs::write(dir.join("client.toml"), text).unwrap();
    admin(&dir.join("test.pem"), &dir.join("test.ca.pem"));
}

/// The files of an admin.
pub(crate) fn admin(identity_file: &Path, ca_file: &Path) {
    write(Role::Admin, "test", identity_file, ca_file);
}

fn write(role: Role, name: &str, identity_file: &Path, ca_file: &Path) {
    let ca = authority();
    let asked = Request::new().unwrap();
    let key = PublicKey::of_request(&asked.request).unwrap();
    let issued = ca.issue(&identity(role, name), &key, &[]).unwrap();
    files::write(ca_file, files::pem(&ca.roots()).as_bytes()).unwrap();
    files::write_secret(identity_file, &[issued.certificate], Some(&asked.key)).unwrap();
}

fn make(folder: &Path) {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .unwrap();
}
