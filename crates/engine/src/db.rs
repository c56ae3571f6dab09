//! The engine's database: one redb file whose tables map a name to a JSON document.
//!
//! Each module defines its own tables with [`table`] and keeps what it needs in memory; the file is
//! read once at start and written in batches. A batch is durable when [`Db::write`] returns.

use std::path::{Path, PathBuf};

use redb::{ReadableDatabase, ReadableTable, TableDefinition, TableError};
use serde::{Serialize, de::DeserializeOwned};

/// Pages redb may keep in memory, in bytes. Tables are read once at start, so a small cache does.
const CACHE_BYTES: usize = 2 * 1024 * 1024;

/// A table of JSON documents by name.
pub type Table = TableDefinition<'static, &'static str, &'static [u8]>;

/// Names a table.
pub const fn table(name: &'static str) -> Table {
    TableDefinition::new(name)
}

/// Why the database could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be opened, or another daemon has it open.
    #[error("open database {path}: {source}")]
    Open {
        path: PathBuf,
        #[source]
        source: Box<redb::Error>,
    },
    /// A transaction did not go through; nothing of it is kept.
    #[error("database: {0}")]
    Storage(#[source] Box<redb::Error>),
    /// A stored document is not what its table holds.
    #[error("database record {key}: {source}")]
    Record {
        key: String,
        #[source]
        source: serde_json::Error,
    },
}

impl Error {
    fn storage(source: impl Into<redb::Error>) -> Self {
        Self::Storage(Box::new(source.into()))
    }
}

/// The open database. Shared by reference; redb serialises the writers.
#[derive(Debug)]
pub struct Db(redb::Database);

impl Db {
    /// Opens or makes the file at `path`, whose directory must exist.
    ///
    /// # Errors
    /// [`Error::Open`] also when another process has it open.
    pub fn open(path: &Path) -> Result<Self, Error> {
        redb::Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(path)
            .map(Self)
            .map_err(|e| Error::Open { path: path.to_owned(), source: Box::new(e.into()) })
    }

    /// All documents of `table`, by name. A table never written is empty.
    pub fn all<T: DeserializeOwned>(&self, table: Table) -> Result<Vec<(String, T)>, Error> {
        let read = self.0.begin_read().map_err(Error::storage)?;
        let table = match read.open_table(table) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(e) => return Err(Error::storage(e)),
        };
        let mut records = Vec::new();
        for item in table.iter().map_err(Error::storage)? {
            let (key, value) = item.map_err(Error::storage)?;
            records.push((key.value().to_owned(), decode(key.value(), value.value())?));
        }
        Ok(records)
    }

    /// One document of `table`.
    pub fn get<T: DeserializeOwned>(&self, table: Table, key: &str) -> Result<Option<T>, Error> {
        let read = self.0.begin_read().map_err(Error::storage)?;
        let table = match read.open_table(table) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(e) => return Err(Error::storage(e)),
        };
        let value = table.get(key).map_err(Error::storage)?;
        value.map(|value| decode(key, value.value())).transpose()
    }

    /// Runs `change` in one transaction: all of it is on disk when this returns, or none of it.
    pub fn write<T, E: From<Error>>(
        &self,
        change: impl FnOnce(&Batch<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let transaction = self.0.begin_write().map_err(Error::storage)?;
        let value = change(&Batch(&transaction))?;
        transaction.commit().map_err(Error::storage)?;
        Ok(value)
    }
}

/// Changes that become durable together.
pub struct Batch<'a>(&'a redb::WriteTransaction);

impl std::fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch").finish_non_exhaustive()
    }
}

impl Batch<'_> {
    /// Writes a document, replacing one of the same name.
    pub fn put<T: Serialize>(&self, table: Table, key: &str, value: &T) -> Result<(), Error> {
        let bytes = serde_json::to_vec(value)
            .map_err(|source| Error::Record { key: key.to_owned(), source })?;
        let mut table = self.0.open_table(table).map_err(Error::storage)?;
        table.insert(key, bytes.as_slice()).map_err(Error::storage)?;
        Ok(())
    }

    /// Removes a document; a missing one is no error.
    pub fn delete(&self, table: Table, key: &str) -> Result<(), Error> {
        let mut table = self.0.open_table(table).map_err(Error::storage)?;
        table.remove(key).map_err(Error::storage)?;
        Ok(())
    }
}

fn decode<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|source| Error::Record { key: key.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: Table = table("names");

    #[test]
    fn a_batch_is_there_after_reopening_and_a_failed_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("engine.redb");
        {
            let db = Db::open(&path).unwrap();
            assert!(db.all::<u32>(NAMES).unwrap().is_empty());
            db.write(|b| b.put(NAMES, "one", &1u32)).unwrap();
            let failed: Result<(), Error> = db.write(|b| {
                b.put(NAMES, "two", &2u32)?;
                b.put(NAMES, "bad", &std::collections::BTreeMap::from([(vec![1u8], 1)]))
            });
            assert!(failed.is_err());
        }
        let db = Db::open(&path).unwrap();
        assert_eq!(db.all::<u32>(NAMES).unwrap(), [("one".to_owned(), 1)]);
        assert_eq!(db.get::<u32>(NAMES, "two").unwrap(), None);
        db.write(|b| b.delete(NAMES, "one")).unwrap();
        assert!(db.all::<u32>(NAMES).unwrap().is_empty());
    }

    #[test]
    fn a_second_daemon_cannot_open_the_same_database() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("engine.redb");
        let _first = Db::open(&path).unwrap();
        assert!(matches!(Db::open(&path), Err(Error::Open { .. })));
    }
}
