//! The places a run reads and writes: first looked at, all of them, then created.
//!
//! [`check`] touches nothing. [`Places::create`] can still fail where the file system changes its
//! mind (a read-only mount looks writable to root); it then removes what it had created.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{access, Access};
use tempfile::TempDir;

use super::error::StressError;
use super::options::{LogKind, Options};

/// The reports of `--out`.
pub const CSV_NAME: &str = "stress.csv";
/// See [`CSV_NAME`].
pub const JSON_NAME: &str = "stress.json";
/// See [`CSV_NAME`].
pub const SVG_NAME: &str = "stress.svg";
/// See [`CSV_NAME`]; with `--compare`.
pub const COMPARE_CSV_NAME: &str = "compare.csv";
/// See [`CSV_NAME`]; with `--compare`.
pub const COMPARE_SVG_NAME: &str = "compare.svg";
const REPORTS: [&str; 5] = [CSV_NAME, JSON_NAME, SVG_NAME, COMPARE_CSV_NAME, COMPARE_SVG_NAME];

/// Looks at every place named on the command line; creates and changes nothing.
pub fn check(options: &Options) -> Result<(), StressError> {
    if let Some(dir) = &options.data_dir {
        check_directory("--data-dir", dir, &[])?;
        if options.out.as_ref().is_some_and(|out| same(out, dir)) {
            return Err(bad("--out", dir, "is the data directory; give another one"));
        }
    } else if options.log == LogKind::RaftEngine {
        let dir = std::env::temp_dir();
        check_writable("--data-dir", &dir).map_err(|error| {
            StressError::BadInput(format!("{error}; set TMPDIR or give --data-dir"))
        })?;
    }
    if let Some(config) = &options.config {
        check_config(config)?;
    }
    check_reports(options.out.as_deref(), options.json.as_deref(), &REPORTS)
}

/// Looks at where reports of these names are to be written, and the one of `--json`; creates and changes nothing.
pub fn check_reports(
    out: Option<&Path>,
    json: Option<&Path>,
    names: &[&str],
) -> Result<(), StressError> {
    if let Some(out) = out {
        check_directory("--out", out, &report_names(out, json, names))?;
    }
    match json {
        Some(path) if path.as_os_str() != "-" => check_json(path, out),
        _ => Ok(()),
    }
}

/// The directories of a run, created. Temporary ones go when this is dropped.
#[derive(Debug)]
pub struct Places {
    data: Data,
}

#[derive(Debug)]
enum Data {
    None,
    Given(PathBuf),
    Temporary(TempDir),
}

impl Places {
    /// Creates the directories that the run needs; on an error, none of them stays.
    pub fn create(options: &Options) -> Result<Self, StressError> {
        let mut created = Created::default();
        let data = match (&options.data_dir, options.log) {
            (_, LogKind::Memory) => Data::None,
            (Some(dir), LogKind::RaftEngine) => {
                created.directory("--data-dir", dir)?;
                Data::Given(dir.clone())
            }
            (None, LogKind::RaftEngine) => Data::Temporary(temporary_directory()?),
        };
        if let Some(out) = &options.out {
            created.directory("--out", out)?;
        }
        created.keep();
        Ok(Self { data })
    }

    /// A new directory for the stores of one repeat of one row; `None` when the log is in memory.
    ///
    /// `row` is the number of the row, since two rows may have the same region count.
    pub fn row_dir(&self, row: usize, repeat: u64) -> Result<Option<PathBuf>, StressError> {
        let root = match &self.data {
            Data::None => return Ok(None),
            Data::Given(dir) => dir.as_path(),
            Data::Temporary(dir) => dir.path(),
        };
        let dir = root.join(format!("row-{row}-repeat-{repeat}"));
        fs::create_dir(&dir).map_err(|source| StressError::Write { path: dir.clone(), source })?;
        Ok(Some(dir))
    }

    /// Frees the disk of a finished repeat, where its directory is a temporary one.
    pub fn release(&self, row_dir: Option<&Path>) {
        if let (Data::Temporary(_), Some(dir)) = (&self.data, row_dir) {
            // What stays here goes with the whole temporary directory.
            drop(fs::remove_dir_all(dir));
        }
    }
}

/// Directories created so far; removed again on drop unless kept.
#[derive(Default)]
struct Created {
    directories: Vec<PathBuf>,
}

impl Created {
    fn directory(&mut self, option: &str, path: &Path) -> Result<(), StressError> {
        let missing: Vec<PathBuf> = path
            .ancestors()
            .filter(|dir| !dir.as_os_str().is_empty())
            .take_while(|dir| !dir.exists())
            .map(Path::to_path_buf)
            .collect();
        for dir in missing.into_iter().rev() {
            fs::create_dir(&dir)
                .map_err(|error| bad(option, &dir, &format!("cannot be created: {error}")))?;
            self.directories.push(dir);
        }
        Ok(())
    }

    fn keep(mut self) {
        self.directories.clear();
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        for dir in self.directories.iter().rev() {
            drop(fs::remove_dir(dir));
        }
    }
}

fn temporary_directory() -> Result<TempDir, StressError> {
    tempfile::Builder::new().prefix("stress-").tempdir().map_err(|error| {
        let problem = format!("no temporary directory can be created: {error}");
        bad("--data-dir", &std::env::temp_dir(), &problem)
    })
}

/// A directory to write into: not there yet, or there with nothing but `allowed` names in it.
fn check_directory(option: &str, path: &Path, allowed: &[OsString]) -> Result<(), StressError> {
    if path.as_os_str().is_empty() {
        return Err(bad(option, path, "is empty; give a directory"));
    }
    if path.components().any(|part| part == Component::ParentDir) && !path.exists() {
        return Err(bad(option, path, "does not exist; name a new one without `..`"));
    }
    match fs::metadata(path) {
        Ok(meta) if !meta.is_dir() => {
            Err(bad(option, path, "is not a directory; give a new or empty one"))
        }
        Ok(_) => {
            check_holds_only(option, path, allowed)?;
            check_writable(option, path)
        }
        Err(_) => check_can_be_created(option, path),
    }
}

fn check_holds_only(option: &str, path: &Path, allowed: &[OsString]) -> Result<(), StressError> {
    let unreadable = |error: io::Error| bad(option, path, &format!("cannot be read: {error}"));
    for entry in fs::read_dir(path).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        if !allowed.contains(&name) {
            let problem = format!(
                "is not empty (holds {}); give a new or empty directory",
                name.to_string_lossy()
            );
            return Err(bad(option, path, &problem));
        }
    }
    Ok(())
}

/// Walks up to what exists, which has to be a directory one can write to.
fn check_can_be_created(option: &str, path: &Path) -> Result<(), StressError> {
    for ancestor in path.ancestors() {
        let ancestor = or_current(ancestor);
        if fs::symlink_metadata(ancestor).is_err() {
            continue;
        }
        return match fs::metadata(ancestor) {
            Ok(meta) if meta.is_dir() => check_writable(option, ancestor),
            Ok(_) => Err(bad(option, path, &below(ancestor, "is not a directory"))),
            Err(_) => Err(bad(option, path, &below(ancestor, "is a broken link"))),
        };
    }
    Err(bad(option, path, "has no existing parent directory"))
}

fn check_writable(option: &str, dir: &Path) -> Result<(), StressError> {
    access(dir, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|error| bad(option, dir, &format!("cannot be written: {error}")))
}

fn check_config(path: &Path) -> Result<(), StressError> {
    let meta = fs::metadata(path)
        .map_err(|error| bad("--config", path, &format!("cannot be read: {error}")))?;
    if !meta.is_file() {
        return Err(bad("--config", path, "is not a file; give a TOML file"));
    }
    fs::File::open(path)
        .map(drop)
        .map_err(|error| bad("--config", path, &format!("cannot be read: {error}")))
}

fn check_json(path: &Path, out: Option<&Path>) -> Result<(), StressError> {
    const OPTION: &str = "--json";
    if path.file_name().is_none() {
        return Err(bad(OPTION, path, "is not the name of a file"));
    }
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => {
            return Err(bad(OPTION, path, "is a directory; give a file"));
        }
        Ok(_) => access(path, Access::WRITE_OK)
            .map_err(|error| bad(OPTION, path, &format!("cannot be written: {error}")))?,
        Err(_) if fs::symlink_metadata(path).is_ok() => {
            return Err(bad(OPTION, path, "is a broken link"));
        }
        Err(_) => {}
    }
    let parent = or_current(path.parent().unwrap_or(Path::new(".")));
    if out.is_some_and(|out| same(out, parent)) {
        return Ok(()); // Checked already, and about to be created.
    }
    match fs::metadata(parent) {
        Ok(meta) if meta.is_dir() => check_writable(OPTION, parent),
        Ok(_) => Err(bad(OPTION, path, &below(parent, "is not a directory"))),
        Err(error) => {
            let problem = format!("cannot be written: directory {}: {error}", parent.display());
            Err(bad(OPTION, path, &problem))
        }
    }
}

/// What an earlier run with these options may have left in `--out`.
fn report_names(out: &Path, json: Option<&Path>, names: &[&str]) -> Vec<OsString> {
    let mut names: Vec<OsString> = names.iter().map(OsString::from).collect();
    if let Some(json) = json.filter(|json| json.parent().is_some_and(|parent| same(parent, out))) {
        names.extend(json.file_name().map(OsStr::to_os_string));
    }
    names
}

fn same(a: &Path, b: &Path) -> bool {
    let resolved = |path: &Path| {
        fs::canonicalize(or_current(path))
            .or_else(|_| std::path::absolute(or_current(path)))
            .unwrap_or_else(|_| path.to_path_buf())
    };
    resolved(a) == resolved(b)
}

fn or_current(path: &Path) -> &Path {
    if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    }
}

fn below(ancestor: &Path, problem: &str) -> String {
    format!("cannot be created: {} {problem}", ancestor.display())
}

fn bad(option: &str, path: &Path, problem: &str) -> StressError {
    StressError::BadInput(format!("{option} '{}' {problem}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(args: &[&str]) -> Options {
        Options::parse_args(std::iter::once("stress").chain(args.iter().copied())).unwrap()
    }

    fn refusal(args: &[&str]) -> String {
        check(&options(args)).unwrap_err().to_string()
    }

    #[test]
    fn new_directories_are_created_with_their_parents() {
        let temp = tempfile::tempdir().unwrap();
        let out = temp.path().join("a/b");
        let options = options(&["--out", out.to_str().unwrap()]);
        check(&options).unwrap();
        assert!(!temp.path().join("a").exists());
        Places::create(&options).unwrap();
        assert!(out.is_dir());
    }

    #[test]
    fn failed_creation_removes_what_it_created() {
        let temp = tempfile::tempdir().unwrap();
        let data = temp.path().join("x/data");
        let out = "/proc/nothing-can-be-made-here";
        let options =
            options(&["--log", "raft-engine", "--data-dir", data.to_str().unwrap(), "--out", out]);
        let error = Places::create(&options).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(out), "{error}");
        assert!(!temp.path().join("x").exists());
    }

    #[test]
    fn out_directory_may_hold_earlier_reports_only() {
        let temp = tempfile::tempdir().unwrap();
        let out = temp.path().to_str().unwrap();
        fs::write(temp.path().join(CSV_NAME), "").unwrap();
        fs::write(temp.path().join("mine.json"), "").unwrap();
        assert!(refusal(&["--out", out]).contains("mine.json"));
        let json = temp.path().join("mine.json");
        let with_json = options(&["--out", out, "--json", json.to_str().unwrap()]);
        check(&with_json).unwrap();
    }

    #[test]
    fn data_directory_must_be_empty_and_another_than_out() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().to_str().unwrap();
        check(&options(&["--data-dir", dir])).unwrap();
        assert!(refusal(&["--data-dir", dir, "--out", dir]).contains("data directory"));
        fs::write(temp.path().join(CSV_NAME), "").unwrap();
        assert!(refusal(&["--data-dir", dir]).contains(CSV_NAME));
    }

    #[test]
    fn temporary_data_goes_with_the_run() {
        let options = options(&["--log", "raft-engine"]);
        let places = Places::create(&options).unwrap();
        let first = places.row_dir(0, 0).unwrap().unwrap();
        let second = places.row_dir(1, 0).unwrap().unwrap();
        places.release(Some(&first));
        assert!(!first.exists() && second.is_dir());
        drop(places);
        assert!(!second.exists());
    }

    #[test]
    fn log_in_memory_needs_no_directory() {
        let temp = tempfile::tempdir().unwrap();
        let data = temp.path().join("data");
        let options = options(&["--data-dir", data.to_str().unwrap()]);
        let places = Places::create(&options).unwrap();
        assert_eq!(places.row_dir(0, 0).unwrap(), None);
        assert!(!data.exists());
    }
}
