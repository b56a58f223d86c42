//! The style of this repository, as far as a program can judge it.
//!
//! Each rule has a list of allowances, and the lists only shrink: an allowance that nothing needs any
//! more fails the test as a broken rule does. Whoever adds one writes the reason beside it.
//!
//! The rules that need no judgement are rustfmt's and Clippy's; these are the others.

use std::fs;
use std::path::{Path, PathBuf};

use raftstore::StoreConfig;
use serde_json::Value;

const MAX_FILE_LINES: usize = 700;
const MAX_FUNCTION_LINES: usize = 70;
const MAX_ARCHITECTURE_LINES: usize = 300;

/// Path, lines it may have, reason.
const LONG_FILES: &[(&str, usize, &str)] = &[];

/// `path::function`, lines it may have, reason.
const LONG_FUNCTIONS: &[(&str, usize, &str)] =
    &[("region/tests/properties.rs::happen", 81, "one arm for each event of a history")];

/// Path of a test that may sleep, reason.
const SLEEPING_TESTS: &[(&str, &str)] = &[];

/// Package that does not take the workspace's lints, reason.
const OWN_LINTS: &[(&str, &str)] = &[];

/// Marks of work left undone. Split, so that this file does not find itself.
const UNFINISHED: [&str; 2] = [concat!("FIX", "ME"), concat!("XX", "X")];

/// Code that must not stay, split for the same reason.
const LEFT_OPEN: [&str; 4] =
    [concat!("to", "do!"), concat!("unimple", "mented!"), concat!("#[ig", "nore"), "dbg!("];
const SLEEP: &str = concat!("thread::", "sleep");

/// Directories that hold nothing of ours.
const NOT_OURS: [&str; 3] = ["target", ".git", "stress-out"];

fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("benches is in the workspace");
    root.to_path_buf()
}

/// A file of the repository.
struct Source {
    /// Relative to the root, with `/`.
    path: String,
    text: String,
}

/// All text files of these extensions, in order.
fn sources(extensions: &[&str]) -> Vec<Source> {
    let root = root();
    let mut found = Vec::new();
    let mut open = vec![root.clone()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).expect("a readable directory") {
            let path = entry.expect("a readable entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                if !NOT_OURS.contains(&name.as_str()) {
                    open.push(path);
                }
                continue;
            }
            let extension = path.extension().unwrap_or_default().to_string_lossy().into_owned();
            if extensions.contains(&extension.as_str()) {
                let relative = path.strip_prefix(&root).expect("below the root");
                let relative = relative.to_string_lossy().replace('\\', "/");
                let text = fs::read_to_string(&path).expect("UTF-8");
                found.push(Source { path: relative, text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(!found.is_empty(), "no file of {extensions:?} found; is the root right?");
    found
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn assert_none(rule: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{rule}\n  {}", broken.join("\n  "));
}

/// Rust with its comments and the insides of its literals blanked, lines kept.
fn code_only(text: &str) -> String {
    let mut out: Vec<u8> = text.as_bytes().to_vec();
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes[at..].starts_with(b"//") => find(bytes, at, b"\n"),
            b'/' if bytes[at..].starts_with(b"/*") => end_of_block_comment(bytes, at),
            b'"' => end_of_string(bytes, at),
            b'r' if at == 0 || !is_word(bytes[at - 1]) || bytes[at - 1] == b'b' => {
                end_of_raw_string(bytes, at)
            }
            b'\'' => end_of_char(bytes, at),
            _ => at + 1,
        };
        if end > at + 1 {
            out[at..end].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
        }
        at = end;
    }
    String::from_utf8(out).expect("whole literals are blanked, so whole characters")
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Where `what` begins after `from`, or the end.
fn find(bytes: &[u8], from: usize, what: &[u8]) -> usize {
    let found = bytes[from..].windows(what.len()).position(|window| window == what);
    found.map_or(bytes.len(), |offset| from + offset)
}

fn end_of_block_comment(bytes: &[u8], from: usize) -> usize {
    let (mut at, mut depth) = (from, 0);
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            (at, depth) = (at + 2, depth + 1);
        } else if bytes[at..].starts_with(b"*/") {
            (at, depth) = (at + 2, depth - 1);
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    at
}

fn end_of_string(bytes: &[u8], from: usize) -> usize {
    let mut at = from + 1;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

/// `from + 1` where no raw string begins.
fn end_of_raw_string(bytes: &[u8], from: usize) -> usize {
    let hashes = bytes[from + 1..].iter().take_while(|byte| **byte == b'#').count();
    if bytes.get(from + 1 + hashes) != Some(&b'"') {
        return from + 1;
    }
    let close = [b"\"".to_vec(), vec![b'#'; hashes]].concat();
    (find(bytes, from + 2 + hashes, &close) + close.len()).min(bytes.len())
}

/// `from + 1` for a lifetime.
fn end_of_char(bytes: &[u8], from: usize) -> usize {
    let body = match bytes.get(from + 1) {
        Some(b'\\') => find(bytes, from + 3, b"'"),
        // A character of up to four bytes, or a lifetime, which no quote follows.
        Some(_) => (from + 2..from + 6)
            .find(|end| bytes.get(*end) == Some(&b'\''))
            .filter(|end| *end == from + 2 || !bytes[from + 1].is_ascii())
            .unwrap_or(from),
        None => from,
    };
    body + 1
}

/// Names and line counts of all functions with a body. `code` has passed [`code_only`].
fn functions(code: &str) -> Vec<(String, usize)> {
    let bytes = code.as_bytes();
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let name: String =
            code[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if name.is_empty() || at > 0 && is_word(bytes[at - 1]) {
            continue; // A function pointer's type, or the end of another word.
        }
        if let Some(end) = end_of_body(bytes, at) {
            let lines = code[at..end].lines().count();
            found.push((name, lines));
        }
    }
    found
}

/// Past the brace that closes the body; `None` for a function without one.
fn end_of_body(bytes: &[u8], from: usize) -> Option<usize> {
    let (mut nested, mut braces) = (0, 0);
    for (offset, byte) in bytes[from..].iter().enumerate() {
        match byte {
            b'(' | b'[' => nested += 1,
            b')' | b']' => nested -= 1,
            b';' if nested == 0 && braces == 0 => return None,
            b'{' => braces += 1,
            b'}' => {
                braces -= 1;
                if braces == 0 {
                    return Some(from + offset + 1);
                }
            }
            _ => {}
        }
    }
    None
}

/// The part of a file that is compiled for tests only.
fn test_part<'a>(path: &str, code: &'a str) -> &'a str {
    if path.contains("/tests/") || path.ends_with("_models.rs") {
        return code;
    }
    code.find("#[cfg(test)]\nmod ").map_or("", |at| &code[at..])
}

#[test]
fn files_are_short() {
    let files = sources(&["rs", "md", "toml", "proto", "txt", "yml"]);
    let mut broken = Vec::new();
    for file in &files {
        let lines = file.text.lines().count();
        let allowed = LONG_FILES.iter().find(|(path, _, _)| *path == file.path);
        let limit = allowed.map_or(MAX_FILE_LINES, |(_, limit, _)| *limit);
        if lines > limit {
            broken.push(format!("{} has {lines} lines, at most {limit} are allowed", file.path));
        }
    }
    for (path, _, _) in LONG_FILES {
        let lines = files.iter().find(|file| file.path == *path).map(|f| f.text.lines().count());
        if lines.is_none_or(|lines| lines <= MAX_FILE_LINES) {
            broken.push(format!("{path} needs no allowance any more, take it off the list"));
        }
    }
    assert_none("a file this long is a question: what should be a part of its own?", &broken);
}

#[test]
fn functions_are_short() {
    let mut broken = Vec::new();
    let mut needed = Vec::new();
    for file in sources(&["rs"]) {
        for (name, lines) in functions(&code_only(&file.text)) {
            let name = format!("{}::{name}", file.path);
            let allowed = LONG_FUNCTIONS.iter().find(|(allowed, _, _)| *allowed == name);
            let limit = allowed.map_or(MAX_FUNCTION_LINES, |(_, limit, _)| *limit);
            if lines > MAX_FUNCTION_LINES {
                needed.push(name.clone());
            }
            if lines > limit {
                broken.push(format!("{name} has {lines} lines, at most {limit} are allowed"));
            }
        }
    }
    for (name, _, _) in LONG_FUNCTIONS {
        if !needed.iter().any(|long| long == name) {
            broken.push(format!("{name} needs no allowance any more, take it off the list"));
        }
    }
    assert_none("a function should fit on a screen", &broken);
}

#[test]
fn nothing_is_left_undone() {
    let mut broken = Vec::new();
    for file in sources(&["rs", "proto", "toml"]) {
        for (number, line) in file.text.lines().enumerate() {
            let words = line.split(|c: char| !c.is_alphanumeric());
            for mark in words.filter(|word| UNFINISHED.contains(word)) {
                broken.push(format!("{}:{}: {mark}", file.path, number + 1));
            }
        }
        if !file.path.ends_with(".rs") {
            continue;
        }
        for (number, line) in code_only(&file.text).lines().enumerate() {
            for mark in LEFT_OPEN {
                if line.contains(mark) {
                    broken.push(format!("{}:{}: {mark}", file.path, number + 1));
                }
            }
        }
    }
    assert_none("finish it, or write an issue about it", &broken);
}

#[test]
fn tests_do_not_sleep() {
    let mut broken = Vec::new();
    let mut needed = Vec::new();
    for file in sources(&["rs"]) {
        let code = code_only(&file.text);
        if test_part(&file.path, &code).contains(SLEEP) {
            needed.push(file.path.clone());
            if !SLEEPING_TESTS.iter().any(|(path, _)| *path == file.path) {
                broken.push(format!("{} sleeps", file.path));
            }
        }
    }
    for (path, _) in SLEEPING_TESTS {
        if !needed.iter().any(|sleeping| sleeping == path) {
            broken.push(format!("{path} needs no allowance any more, take it off the list"));
        }
    }
    assert_none("poll a condition with a deadline instead", &broken);
}

#[test]
fn every_crate_forbids_unsafe_code() {
    let workspace = read("Cargo.toml");
    assert!(
        section(&workspace, "[workspace.lints.rust]").contains("unsafe_code = \"forbid\""),
        "the workspace's lints no longer forbid unsafe code"
    );
    let members = workspace.lines().find(|line| line.starts_with("members"));
    let members: Vec<&str> = members.expect("a workspace").split('"').skip(1).step_by(2).collect();
    let mut broken = Vec::new();
    for member in &members {
        let manifest = read(&format!("{member}/Cargo.toml"));
        let takes_them = section(&manifest, "[lints]").contains("workspace = true");
        match (takes_them, OWN_LINTS.iter().any(|(own, _)| own == member)) {
            (false, false) => {
                broken.push(format!("{member}/Cargo.toml does not take the workspace's lints"));
            }
            (true, true) => {
                broken.push(format!("{member} needs no allowance any more, take it off the list"));
            }
            _ => {}
        }
    }
    for file in sources(&["rs"]) {
        let library = file.path.ends_with("/src/lib.rs") && !file.path.starts_with("benches/");
        if library && !file.text.contains("#![forbid(unsafe_code)]") {
            broken.push(format!("{} does not forbid unsafe code", file.path));
        }
        if code_only(&file.text).contains("allow(unsafe_code") {
            broken.push(format!("{} allows unsafe code", file.path));
        }
    }
    assert!(members.len() >= 4, "only {members:?} found");
    assert_none("no crate has unsafe code", &broken);
}

/// The lines of a TOML section.
fn section<'a>(toml: &'a str, title: &str) -> &'a str {
    let Some(at) = toml.find(title) else { return "" };
    let body = &toml[at + title.len()..];
    &body[..body.find("\n[").unwrap_or(body.len())]
}

#[test]
fn architecture_fits_into_one_reading() {
    let lines = read("docs/architecture.md").lines().count();
    assert!(lines < MAX_ARCHITECTURE_LINES, "docs/architecture.md has {lines} lines");
}

/// Names of metrics: a name in lower case that opens a parenthesis and is followed by its help.
fn metric_names(text: &str) -> Vec<String> {
    let text = &text[..text.find("#[cfg(test)]").unwrap_or(text.len())];
    let mut names = Vec::new();
    for (at, _) in text.match_indices('(') {
        let Some(rest) = text[at + 1..].trim_start().strip_prefix('"') else { continue };
        let Some((name, rest)) = rest.split_once('"') else { continue };
        let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        let help = rest.strip_prefix(',').is_some_and(|rest| rest.trim_start().starts_with('"'));
        if plain && help {
            names.push(format!("raftstore_{name}"));
        }
    }
    names
}

#[test]
fn every_metric_is_documented_and_every_documented_metric_exists() {
    let naming = "\"raftstore_{name}\"";
    let mut names = Vec::new();
    for file in sources(&["rs"]) {
        if file.path.starts_with("raftstore/src/") && file.text.contains(naming) {
            names.extend(metric_names(&file.text));
        }
    }
    assert!(names.len() >= 25, "only {names:?} found; has the way of naming them changed?");
    let docs = read("docs/metrics.md");
    let mut broken: Vec<String> = names
        .iter()
        .filter(|name| !docs.contains(&format!("| `{name}` |")))
        .map(|name| format!("{name} has no row"))
        .collect();
    for word in docs.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
        let name = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| word.strip_suffix(suffix))
            .unwrap_or(word);
        let named = word.starts_with("raftstore_") && word != "raftstore_";
        if named && !names.iter().any(|known| known == name) {
            broken.push(format!("{word} does not exist"));
        }
    }
    assert_none("docs/metrics.md and the code differ", &broken);
}

/// Keys with a dot between section and key, and their values.
fn keys(prefix: &str, value: &Value, found: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let dot = if prefix.is_empty() { "" } else { "." };
                keys(&format!("{prefix}{dot}{key}"), value, found);
            }
        }
        Value::Null => found.push((prefix.to_owned(), "left out".to_owned())),
        Value::String(text) => found.push((prefix.to_owned(), text.replace(".0 ", " "))),
        other => found.push((prefix.to_owned(), other.to_string())),
    }
}

#[test]
fn every_setting_is_documented_with_its_default() {
    let config = serde_json::to_value(StoreConfig::default()).expect("plain data");
    let mut settings = Vec::new();
    keys("", &config, &mut settings);
    assert!(settings.len() >= 20, "only {settings:?} found");
    let docs = read("docs/config.md");
    let mut broken = Vec::new();
    for (key, default) in &settings {
        let row = format!("| `{key}` | `{default}` |");
        if !docs.contains(&row) {
            broken.push(format!("no row begins with {row}"));
        }
    }
    for line in docs.lines() {
        let Some(key) = line.strip_prefix("| `").and_then(|rest| rest.split('`').next()) else {
            continue;
        };
        if !settings.iter().any(|(known, _)| known == key) {
            broken.push(format!("{key} is no setting"));
        }
    }
    assert_none("docs/config.md and the settings differ", &broken);
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut broken = Vec::new();
    for file in sources(&["md"]) {
        let dir = root().join(&file.path).parent().expect("a file is in a directory").to_path_buf();
        for (at, _) in file.text.match_indices("](") {
            let target = file.text[at + 2..].split([')', '#', ' ']).next().unwrap_or_default();
            let elsewhere = target.is_empty() || target.contains("://");
            if !elsewhere && !dir.join(target).exists() {
                broken.push(format!("{}: {target}", file.path));
            }
        }
    }
    assert_none("these links lead nowhere", &broken);
}

#[test]
fn state_machine_in_the_readme_is_the_one_that_compiles() {
    let readme = read("README.md");
    let shown = readme.split("```").find(|block| block.contains("impl StateMachine for"));
    let shown = shown.expect("the README shows a state machine").trim_start_matches("rust\n");
    let (_, body) = shown.split_once("\n\n").expect("its imports, and then the type");
    assert!(
        read("raftstore/examples/counter.rs").contains(body.trim_end()),
        "README.md and raftstore/examples/counter.rs differ"
    );
}

#[test]
fn literals_and_comments_are_not_code() {
    let code =
        code_only("let a = \"{ // \\\" }\"; // }\nlet b: &'a str = r#\"}\"{\"#; 'x'; '{'; /* { */");
    assert!(!code.contains(['{', '}']), "{code}");
    assert_eq!(code.lines().count(), 2);
    let code = code_only("fn f<'a>(x: &'a [u8; 2]) -> char {\n '}'\n}\nfn g();\nlet h: fn (u8);");
    assert_eq!(functions(&code), [("f".to_owned(), 3)]);
    assert_eq!(test_part("src/a.rs", "a\n#[cfg(test)]\nmod tests {}").lines().count(), 2);
    assert_eq!(metric_names("opts(\n  \"a_b\",\n \"Help.\") (\"c\", d)"), ["raftstore_a_b"]);
}
