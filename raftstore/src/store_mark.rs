//! A mark in the data directory that says which store has lived there.
//!
//! The log knows, too. But a log that is gone looks like that of a new store, which may vote as it likes: a
//! disk that was not mounted would cost votes and acknowledged writes in silence. So the mark stands beside the
//! log, and a mark without a log is refused.

use crate::error::StartError;
use crate::log_store::LogStoreError;
use region::{StoreId, StoreIdent};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const FILE: &str = "store";

fn file(data_dir: &Path) -> PathBuf {
    data_dir.join(FILE)
}

fn text(ident: StoreIdent) -> String {
    format!("cluster {} store {}\n", ident.cluster_id, ident.store_id)
}

fn parse(text: &str) -> Option<StoreIdent> {
    let (cluster, store) = text.trim().strip_prefix("cluster ")?.split_once(" store ")?;
    let store_id = StoreId::new(store.parse().ok()?);
    Some(StoreIdent { cluster_id: cluster.parse().ok()?, store_id })
}

fn failed(data_dir: &Path, what: &str, error: &io::Error) -> StartError {
    let path = file(data_dir).display().to_string();
    LogStoreError::Open { path, reason: format!("cannot {what} the store's mark: {error}") }.into()
}

/// Compares the mark, if there is one, with what the log says of its store.
pub(crate) fn check(data_dir: &Path, log: Option<StoreIdent>) -> Result<(), StartError> {
    let marked = match fs::read_to_string(file(data_dir)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(data_dir, "read", &error)),
    };
    let refuse = |reason: String| {
        let path = data_dir.display().to_string();
        Err(LogStoreError::Open { path, reason }.into())
    };
    let Some(marked) = parse(&marked) else {
        let found = file(data_dir);
        return refuse(format!("{} is damaged: it says {marked:?}", found.display()));
    };
    match log {
        Some(log) if log == marked => Ok(()),
        Some(log) => refuse(format!(
            "it is marked as that of store {} of cluster {}, and its log is that of store {} of cluster {}",
            marked.store_id, marked.cluster_id, log.store_id, log.cluster_id
        )),
        None => refuse(format!(
            "the log of store {} of cluster {} is gone from it, and with it its votes and acknowledged writes. \
             Bring the log back; or remove the store's peers from their regions, and begin with another \
             directory and store id",
            marked.store_id, marked.cluster_id
        )),
    }
}

/// Leaves the mark, durably, unless it is there.
pub(crate) fn leave(data_dir: &Path, ident: StoreIdent) -> Result<(), StartError> {
    let write = || -> io::Result<()> {
        if file(data_dir).exists() {
            return Ok(());
        }
        let begun = data_dir.join(format!("{FILE}.new"));
        let mut mark = File::create(&begun)?;
        mark.write_all(text(ident).as_bytes())?;
        mark.sync_all()?;
        fs::rename(&begun, file(data_dir))?;
        File::open(data_dir)?.sync_all()
    };
    write().map_err(|error| failed(data_dir, "write", &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_compared_with_the_log() {
        let dir = tempfile::tempdir().expect("a directory");
        let ident = |store| StoreIdent { cluster_id: 7, store_id: StoreId::new(store) };
        let check = |log| check(dir.path(), log).map_err(|error| error.to_string());
        assert_eq!((check(None), check(Some(ident(3)))), (Ok(()), Ok(())));
        leave(dir.path(), ident(3)).expect("written");
        leave(dir.path(), ident(3)).expect("it is there");
        assert_eq!(check(Some(ident(3))), Ok(()));
        let other = check(Some(ident(4))).expect_err("another store's");
        assert!(other.contains("that of store 3 of cluster 7, and its log is that of store 4"));
        let gone = check(None).expect_err("the log is gone");
        assert!(
            gone.contains(dir.path().to_str().expect("UTF-8")) && gone.contains("Bring the log")
        );
        for damage in ["", "cluster 7 store ", "cluster x store 3", "store 3"] {
            fs::write(file(dir.path()), damage).expect("written");
            let damaged = check(Some(ident(3))).expect_err("damaged");
            assert!(damaged.contains("is damaged"), "{damaged}");
        }
    }
}
