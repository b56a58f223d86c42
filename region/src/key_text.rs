//! Keys as text, for people: printable ASCII as it is, all other bytes and the backslash as `\x` and two
//! digits. Nothing is lost.

use bytes::Bytes;
use serde::{de, Deserialize, Deserializer, Serializer};
use std::fmt::Write;

pub(crate) fn to_text(key: &[u8]) -> String {
    let mut text = String::with_capacity(key.len());
    for byte in key {
        match byte {
            b'\\' => text.push_str("\\x5c"),
            b' '..=b'~' => text.push(char::from(*byte)),
            _ => write!(text, "\\x{byte:02x}").expect("a string takes everything"),
        }
    }
    text
}

fn from_text(text: &str) -> Option<Bytes> {
    let mut key = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        if *first != b'\\' {
            key.push(*first);
            rest = behind;
            continue;
        }
        let digits = behind.strip_prefix(b"x")?.get(..2)?;
        if !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        key.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = &behind[3..];
    }
    Some(key.into())
}

pub(crate) fn serialize<S: Serializer>(key: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&to_text(key))
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    let text = String::deserialize(deserializer)?;
    from_text(&text).ok_or_else(|| {
        de::Error::custom(format!("{text:?} is no key: a \\ must begin \\x00 to \\xff"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_survives_as_text() {
        let all: Vec<u8> = (0..=255).collect();
        for key in [&b""[..], b"plain key", b"\\x", &all] {
            let text = to_text(key);
            assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{text}");
            assert_eq!(from_text(&text).as_deref(), Some(key));
        }
        assert_eq!(to_text(b"a\\\0"), "a\\x5c\\x00");
        for text in ["\\", "\\x", "\\x0", "\\y00", "\\x+1", "\\xg0"] {
            assert_eq!(from_text(text), None, "{text}");
        }
    }
}
