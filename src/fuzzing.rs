//! The doors of the fuzzers in `fuzz/`: each takes any bytes and panics when what
//! reads them from outside breaks a promise. The inputs that were found worth
//! keeping are in `fuzz/corpus/`, and run here as an ordinary test.
//!
//! Compiled for tests, and for `cargo fuzz`, which sets `--cfg fuzzing`.

pub use crate::{
    client::logs::fuzz as client_decoder,
    config::fuzz as settings,
    roles::{
        scheduler::fuzz as http_bodies, shim::protocol::fuzz as shim_protocol,
        worker::fuzz as journal,
    },
};

/// A token is read in one way only: what is taken is written as it was.
pub fn tokens(bytes: &[u8]) {
    use crate::identity::token::{Bearer, Fingerprint, Invitation, TokenId};
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(bearer) = text.parse::<Bearer>() {
        assert_eq!(bearer.reveal(), text);
    }
    if let Ok(id) = text.parse::<TokenId>() {
        assert_eq!(id.to_string(), text);
    }
    if let Ok(fingerprint) = text.parse::<Fingerprint>() {
        assert_eq!(fingerprint.to_string(), text);
    }
    if let Ok(invitation) = text.parse::<Invitation>() {
        // A person pastes it, perhaps with the end of the line.
        assert_eq!(invitation.reveal(), text.trim());
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    type Target = (&'static str, fn(&[u8]));

    const TARGETS: &[Target] = &[
        ("client_decoder", client_decoder),
        ("http_bodies", http_bodies),
        ("journal", journal),
        ("settings", settings),
        ("shim_protocol", shim_protocol),
        ("tokens", tokens),
    ];

    fn folder() -> &'static Path {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz"))
    }

    #[test]
    fn every_input_of_the_corpora_is_survived() {
        for (target, run) in TARGETS {
            let corpus = folder().join("corpus").join(target);
            let mut count = 0;
            for entry in fs::read_dir(&corpus).unwrap() {
                let path = entry.unwrap().path();
                // Shown only when the test fails: which input it was.
                println!("{}", path.display());
                run(&fs::read(&path).unwrap());
                count += 1;
            }
            assert!(count > 0, "{target} has no corpus");
        }
    }

    #[test]
    fn every_fuzzer_has_a_corpus_and_a_door() {
        let names = |folder: &Path| -> BTreeSet<String> {
            let entries = fs::read_dir(folder).unwrap();
            let names = entries.map(|entry| entry.unwrap().path());
            let stems = names.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned());
            stems.collect()
        };
        let doors: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(names(&folder().join("fuzz_targets")), doors);
        assert_eq!(names(&folder().join("corpus")), doors);
    }
}
