//! What can go wrong in the stress program, and the exit code of each.

use std::path::PathBuf;

use thiserror::Error;

/// Exit code of a run that went well.
pub const EXIT_OK: u8 = 0;
/// Exit code of a run that failed, or lost or duplicated a write.
pub const EXIT_FAILED: u8 = 1;
/// Exit code of a run refused because of what it was asked for; nothing was touched.
pub const EXIT_BAD_INPUT: u8 = 2;

/// An error of the stress program.
#[derive(Debug, Error)]
pub enum StressError {
    /// The request itself is wrong: correct the named option and start again.
    #[error("{0}")]
    BadInput(String),
    /// A report could not be written: free the place it names and run again.
    #[error("cannot write {path}: {source}", path = path.display())]
    Write {
        /// The file or stream in question.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The chart could not be drawn. This is a fault of the program, the other reports are good.
    #[error("cannot draw the chart: {0}")]
    Chart(String),
    /// A store did not start, elect or stop as it should; the text names the region count, the
    /// phase and the store's own error.
    #[error("{0}")]
    Store(String),
    /// The user interrupted before there was anything to report about this row.
    #[error("interrupted before anything was measured")]
    Interrupted,
}

impl StressError {
    /// Shorthand for [`StressError::BadInput`] in the form `option value: what is wrong`.
    pub fn bad_input(option: &str, value: impl std::fmt::Display, problem: &str) -> Self {
        Self::BadInput(format!("{option} {value}: {problem}"))
    }

    /// The exit code of a program that ends with this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::BadInput(_) => EXIT_BAD_INPUT,
            Self::Write { .. } | Self::Chart(_) | Self::Store(_) => EXIT_FAILED,
            Self::Interrupted => EXIT_OK,
        }
    }
}

/// Folds a message into one line without control characters, fit for standard error.
pub fn one_line(text: &str) -> String {
    let visible: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    visible.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_with_line_breaks_becomes_one_line() {
        assert_eq!(one_line("a\n  b\tc\u{1b}[0m\r\n"), "a b c [0m");
    }

    #[test]
    fn bad_input_has_an_exit_code_of_its_own() {
        let error = StressError::bad_input("--regions", "0", "at least 1");
        assert_eq!(error.exit_code(), EXIT_BAD_INPUT);
        assert_eq!(error.to_string(), "--regions 0: at least 1");
    }
}
