//! The stress program refuses what it cannot do: exit code 2, one line that names the thing, and
//! nothing created or changed.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// A directory to run in, with one file and one full directory in it, and an empty `TMPDIR`.
struct Scene {
    root: TempDir,
}

impl Scene {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        for dir in ["full", "empty", "tmp"] {
            fs::create_dir(root.path().join(dir)).unwrap();
        }
        fs::write(root.path().join("file"), "precious").unwrap();
        fs::write(root.path().join("full/notes"), "precious").unwrap();
        std::os::unix::fs::symlink("nowhere", root.path().join("dangling")).unwrap();
        Self { root }
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_stress"))
            .args(args)
            .current_dir(self.root.path())
            .env("TMPDIR", self.root.path().join("tmp"))
            .output()
            .unwrap()
    }

    /// Every path below the root, and the text of the files.
    fn contents(&self) -> Vec<(PathBuf, String)> {
        let mut found = Vec::new();
        let mut open = vec![self.root.path().to_path_buf()];
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                found.push((path.clone(), fs::read_to_string(&path).unwrap_or_default()));
                if path.is_dir() {
                    open.push(path);
                }
            }
        }
        found.sort();
        found
    }

    /// Runs with bad input, and checks all that this file promises.
    fn assert_refused(&self, args: &[&str], names: &[&str]) {
        let before = self.contents();
        let output = self.run(args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
        let program = if args[0] == "idle" { "stress idle: " } else { "stress: " };
        assert!(stderr.starts_with(program), "{args:?}: {stderr}");
        for name in names {
            assert!(stderr.contains(name), "{args:?} does not name {name}: {stderr}");
        }
        assert!(output.stdout.is_empty(), "{args:?} wrote to standard output");
        assert_eq!(self.contents(), before, "{args:?} touched something");
    }
}

#[test]
fn malformed_options_are_refused() {
    let scene = Scene::new();
    let cases: &[(&[&str], &[&str])] = &[
        (&["--wombat"], &["--wombat"]),
        (&["--region", "1"], &["--region"]),
        (&["--regions", "0"], &["--regions", "'0'"]),
        (&["--regions", "ten"], &["--regions", "'ten'"]),
        (&["--regions", ""], &["--regions"]),
        (&["--regions", "1,"], &["--regions"]),
        (&["--regions", "1\n2"], &["--regions"]),
        (&["--regions", "99999999999999999999"], &["--regions", "2000000"]),
        (&["--stores", "10"], &["--stores", "10"]),
        (&["--payload", "2097152"], &["--payload", "2097152"]),
        (&["--outstanding", "10000001"], &["--outstanding", "10000001"]),
        (&["--duration", "five"], &["--duration", "five"]),
        (&["--warmup", "2 parsecs"], &["--warmup", "2 parsecs"]),
        (&["--metrics-addr", "9090"], &["--metrics-addr", "9090"]),
        (&["--sync", "on"], &["--sync", "raft-engine"]),
        (&["--compare", "wombat"], &["--compare", "wombat", "thread-per-region"]),
        (&["--compare", "bare", "--log", "raft-engine"], &["--compare", "in memory"]),
    ];
    for (args, names) in cases {
        scene.assert_refused(args, names);
    }
}

#[cfg(not(feature = "compare"))]
#[test]
fn openraft_is_refused_by_a_build_without_it() {
    Scene::new().assert_refused(&["--compare", "openraft"], &["--compare", "--features compare"]);
}

#[test]
fn places_that_cannot_be_used_are_refused() {
    let scene = Scene::new();
    let durable = ["--log", "raft-engine"];
    let cases: &[(&[&str], &[&str])] = &[
        (&["--data-dir", "full"], &["--data-dir", "full", "notes"]),
        (&["--data-dir", "file"], &["--data-dir", "file", "not a directory"]),
        (&["--data-dir", "file/below"], &["--data-dir", "file"]),
        (&["--data-dir", "dangling"], &["--data-dir", "dangling"]),
        (&["--data-dir", ""], &["--data-dir"]),
        (&["--data-dir", "new", "--out", "new"], &["--out", "new"]),
        (&["--data-dir", "/proc/new"], &["--data-dir", "/proc/new"]),
        (&["--out", "file"], &["--out", "file"]),
        (&["--out", "full"], &["--out", "full", "notes"]),
        (&["--out", "/proc/new", "--data-dir", "new"], &["--out", "/proc/new"]),
        (&["--json", "missing/report.json"], &["--json", "missing/report.json"]),
        (&["--json", "full"], &["--json", "full", "directory"]),
        (&["--json", "dangling"], &["--json", "dangling"]),
        (&["--json", "file/report.json"], &["--json", "file"]),
        (&["--config", "missing.toml"], &["--config", "missing.toml"]),
        (&["--config", "full"], &["--config", "full"]),
        // What is fine beside it is not created either.
        (&["--out", "new", "--config", "missing.toml"], &["missing.toml"]),
        (&["--out", "full", "--data-dir", "new"], &["--out"]),
    ];
    for (args, names) in cases {
        scene.assert_refused(&[&durable, *args].concat(), names);
    }
}

#[test]
fn idle_refuses_what_it_cannot_do() {
    let scene = Scene::new();
    let cases: &[(&[&str], &[&str])] = &[
        (&["--active", "2"], &["--active", "'2'"]),
        (&["--tick", "1ms"], &["--tick", "1ms"]),
        (&["--regions", "1,x"], &["--regions", "'x'"]),
        (&["--nonsense"], &["--nonsense"]),
        (&["--out", "full"], &["--out", "full", "notes"]),
        (&["--json", "missing/report.json"], &["--json", "missing/report.json"]),
        (&["--out", "new", "--json", "full"], &["--json", "full", "directory"]),
    ];
    for (args, names) in cases {
        scene.assert_refused(&[&["idle"], *args].concat(), names);
    }
}

#[test]
fn busy_metrics_port_is_refused_before_anything_is_created() {
    let scene = Scene::new();
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = busy.local_addr().unwrap().to_string();
    let args = ["--log", "raft-engine", "--out", "new", "--metrics-addr", &addr];
    scene.assert_refused(&args, &["--metrics-addr", &addr]);
    assert!(!scene.root.path().join("new").exists());
}

#[test]
fn missing_temporary_directory_is_refused() {
    let scene = Scene::new();
    fs::remove_dir(scene.root.path().join("tmp")).unwrap();
    scene.assert_refused(&["--log", "raft-engine"], &["--data-dir", "tmp", "TMPDIR"]);
}

#[test]
fn help_and_version_go_to_standard_output() {
    let scene = Scene::new();
    for (arg, word) in [("--help", "--regions"), ("--version", "stress")] {
        let output = scene.run(&[arg]);
        assert_eq!(output.status.code(), Some(0));
        assert!(String::from_utf8(output.stdout).unwrap().contains(word));
        assert!(output.stderr.is_empty());
        for idle in ["idle", "--idle"] {
            let output = scene.run(&[idle, arg]);
            assert_eq!(output.status.code(), Some(0));
            assert!(String::from_utf8(output.stdout).unwrap().contains(word));
        }
    }
    assert!(Path::new(env!("CARGO_BIN_EXE_stress")).exists());
}
