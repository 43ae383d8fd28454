//! What one run of a node leaves to the next: its id, which run it was, and the servers that it knew.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use arborcast_proto::wire::message::Target;
use serde::{Deserialize, Serialize};

/// The name of the file in the data directory.
const FILE: &str = "node.json";

/// What is remembered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// The node's id.
    pub id: String,
    /// Which run it is; larger is later.
    pub incarnation: u64,
    /// Servers to ask for a place when no master answers.
    pub servers: Vec<Target>,
}

impl Memory {
    /// Where the memory is kept in a data directory.
    pub fn path(directory: &Path) -> PathBuf {
        directory.join(FILE)
    }

    /// Reads the memory of the run before; an empty one if there was none.
    ///
    /// # Errors
    /// When the file can't be read, or is not one of ours: nothing is overwritten that is not understood.
    pub fn load(path: &Path) -> io::Result<Self> {
        match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// Replaces the file as a whole: after a crash there is the old one or the new one.
    ///
    /// # Errors
    /// When the directory can't be written to.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let directory = path.parent().unwrap_or_else(|| Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_there_for_the_next_run() {
        let directory = tempfile::tempdir().unwrap();
        let path = Memory::path(directory.path());
        assert_eq!(Memory::load(&path).unwrap(), Memory::default());
        let servers = vec![Target { id: "a".into(), hostname: "h".into(), port: 1 }];
        let memory = Memory { id: "me".into(), incarnation: 3, servers };
        memory.save(&path).unwrap();
        assert_eq!(Memory::load(&path).unwrap(), memory);
    }

    #[test]
    fn a_file_that_is_not_ours_is_an_error_and_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = Memory::path(directory.path());
        for text in ["", "{", "[1]", r#"{"id":5}"#] {
            fs::write(&path, text).unwrap();
            assert!(Memory::load(&path).is_err());
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
}
