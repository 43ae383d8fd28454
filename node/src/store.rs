//! Users at rest: one file in the data directory, which holds hashes and no secrets.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use arborcast_core::UserChange;
use arborcast_proto::wire::{RegistrationId, UserRecord};
use redb::{
    Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, StorageError, TableDefinition, TableError,
    TableHandle as _, WriteTransaction,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::info;

/// The name of the file in the data directory.
const FILE: &str = "users.redb";

/// What is kept of the file in memory. All of it is read once, at the start; after that it is only written.
const CACHE_BYTES: usize = 16 << 20;

/// How the file is laid out. Goes up with every change that an older version can't read.
const FORMAT: u64 = 1;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const FORMAT_KEY: &str = "format";

/// By username; the rest of the record as JSON.
const USERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("users");

/// Why users can't be read from disk. The `Display` text names the file and the way out. Nothing on disk was changed.
#[derive(Debug, Error)]
pub enum StoreError {
    /// Another process has the file.
    #[error("another node is using {path}: stop it, or give another --data-dir")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file is not one of ours, or is damaged.
    #[error(
        "{path} is not a file of users, or is damaged ({why}): put a copy back, or move it away and start without it; \
         the other nodes of the tree send what they know"
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The file is of another version.
    #[error("{path} has format {found}, and this version reads format {FORMAT}: use the version that wrote it")]
    OtherFormat {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: u64,
    },
    /// The file can't be opened or made.
    #[error("cannot open {path}: {source}; check --data-dir and its permissions")]
    Unopened {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
}

/// What is kept of a user, beside the name.
#[derive(Serialize, Deserialize)]
struct Kept {
    hash: String,
    registration: RegistrationId,
}

/// The file, open.
#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
    /// None after a failed write: the database has to be opened anew then. The lock is held for one write, by the one
    /// task that writes.
    database: Mutex<Option<Database>>,
}

impl Store {
    /// Where users are kept in a data directory.
    pub(crate) fn path(directory: &Path) -> PathBuf {
        directory.join(FILE)
    }

    /// Opens the file, or makes it, and reads all users. Blocks.
    pub(crate) fn open(path: PathBuf) -> Result<(Self, Vec<UserRecord>), StoreError> {
        let database = open(&path)?;
        let users = read(&database).map_err(|why| StoreError::Unreadable { path: path.clone(), why })?;
        Ok((Self { path, database: Mutex::new(Some(database)) }, users))
    }

    /// Writes all changes as one transaction, which is on disk when this returns. Blocks.
    ///
    /// # Errors
    /// What went wrong, for people. Nothing was written, and the next write may succeed.
    pub(crate) fn write(&self, changes: &[UserChange]) -> Result<(), String> {
        let mut slot = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let database = match slot.take() {
            Some(database) => database,
            None => open(&self.path).map_err(|error| error.to_string())?,
        };
        write(&database, changes).map_err(|error| error.to_string())?;
        *slot = Some(database);
        Ok(())
    }
}

fn open(path: &Path) -> Result<Database, StoreError> {
    make_private(path).map_err(|source| StoreError::Unopened { path: path.to_owned(), source })?;
    let unreadable = |why: String| StoreError::Unreadable { path: path.to_owned(), why };
    let database = Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { path: path.to_owned() },
        DatabaseError::Storage(StorageError::Io(source))
            // The first is what a file says that never was a database, the second one that was cut short.
            if !matches!(source.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) =>
        {
            StoreError::Unopened { path: path.to_owned(), source }
        }
        other => unreadable(other.to_string()),
    })?;
    match format(&database).map_err(|error| unreadable(error.to_string()))? {
        Some(FORMAT) => Ok(database),
        Some(found) => Err(StoreError::OtherFormat { path: path.to_owned(), found }),
        None => Err(unreadable("it holds something else".to_owned())),
    }
}

/// Makes the file, if it is not there, so that nobody else can read it.
fn make_private(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map(drop)
}

/// The format of the file; a new one gets ours. `None` if it is somebody else's.
fn format(database: &Database) -> Result<Option<u64>, redb::Error> {
    let write = database.begin_write()?;
    let format = {
        let names: Vec<String> = write.list_tables()?.map(|table| table.name().to_owned()).collect();
        if !names.is_empty() && !names.iter().any(|name| name == META.name()) {
            return Ok(None);
        }
        let mut meta = match write.open_table(META) {
            Ok(meta) => meta,
            Err(TableError::TableTypeMismatch { .. } | TableError::TableIsMultimap(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if names.is_empty() {
            meta.insert(FORMAT_KEY, FORMAT)?;
            write.open_table(USERS)?;
        }
        meta.get(FORMAT_KEY)?.map(|format| format.value())
    };
    // Only a new file has changed.
    write.commit()?;
    Ok(format)
}

fn read(database: &Database) -> Result<Vec<UserRecord>, String> {
    let users = database.begin_read().map_err(|error| error.to_string())?;
    let users = users.open_table(USERS).map_err(|error| error.to_string())?;
    let mut records = Vec::new();
    for entry in users.iter().map_err(|error| error.to_string())? {
        let (username, kept) = entry.map_err(|error| error.to_string())?;
        let kept = serde_json::from_slice(kept.value());
        let Kept { hash, registration } = kept.map_err(|error| format!("a user can't be read: {error}"))?;
        records.push(UserRecord { username: username.value().to_owned(), hash, registration });
    }
    info!(users = records.len(), "read users from disk");
    Ok(records)
}

fn write(database: &Database, changes: &[UserChange]) -> Result<(), redb::Error> {
    let transaction: WriteTransaction = database.begin_write()?;
    {
        let mut users = transaction.open_table(USERS)?;
        for change in changes {
            match change {
                UserChange::Put(UserRecord { username, hash, registration }) => {
                    let kept = Kept { hash: hash.clone(), registration: registration.clone() };
                    let kept = serde_json::to_vec(&kept).map_err(|error| StorageError::Io(io::Error::other(error)))?;
                    users.insert(username.as_str(), kept.as_slice())?;
                }
                UserChange::Remove(username) => drop(users.remove(username.as_str())?),
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn record(username: &str) -> UserRecord {
        let registration = RegistrationId { at: 5, server: "n1".into(), number: 2 };
        UserRecord { username: username.into(), hash: "$argon2id$x".into(), registration }
    }

    #[test]
    fn what_was_written_is_there_when_the_file_is_opened_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = Store::path(directory.path());
        let (store, users) = Store::open(path.clone()).unwrap();
        assert_eq!(users, []);
        store.write(&[UserChange::Put(record("aaron")), UserChange::Put(record("berta"))]).unwrap();
        store.write(&[UserChange::Remove("berta".into()), UserChange::Remove("nobody".into())]).unwrap();
        drop(store);
        assert_eq!(Store::open(path).unwrap().1, [record("aaron")]);
    }

    #[test]
    fn a_file_that_is_in_use_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let path = Store::path(directory.path());
        let (_store, _) = Store::open(path.clone()).unwrap();
        assert!(matches!(Store::open(path), Err(StoreError::InUse { .. })));
    }

    #[test]
    fn a_file_of_something_else_is_refused_and_stays_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = Store::path(directory.path());
        for text in ["no database", &"x".repeat(100_000)] {
            fs::write(&path, text).unwrap();
            let error = Store::open(path.clone()).unwrap_err();
            assert!(error.to_string().contains("users.redb"), "{error}");
            assert!(matches!(error, StoreError::Unreadable { .. }), "{error:?}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn another_format_and_another_database_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = Store::path(directory.path());
        drop(Store::open(path.clone()).unwrap());
        let database = Database::create(&path).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction.open_table(META).unwrap().insert(FORMAT_KEY, 7).unwrap();
        transaction.commit().unwrap();
        drop(database);
        assert!(matches!(Store::open(path), Err(StoreError::OtherFormat { found: 7, .. })));

        let path = directory.path().join("other.redb");
        let database = Database::create(&path).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction.open_table(TableDefinition::<'_, u64, u64>::new("something")).unwrap();
        transaction.commit().unwrap();
        drop(database);
        assert!(matches!(Store::open(path), Err(StoreError::Unreadable { .. })));
    }
}
