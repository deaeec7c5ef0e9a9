//! Names in answers: text that stands for any bytes, and for no others.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The bytes of a path or name. As text, `\\` is a backslash, `\xNN` one byte in hexadecimal digits, which is how bytes
/// appear that are no UTF-8 or that control a terminal; everything else is itself.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(pub Vec<u8>);

impl Name {
    /// Reads what [`fmt::Display`] wrote; `None` if the text is nothing of that kind.
    pub fn parse(text: &str) -> Option<Name> {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let Some((byte, after)) = rest.split_first() {
            rest = after;
            if *byte != b'\\' {
                bytes.push(*byte);
                continue;
            }
            match after {
                [b'\\', after @ ..] => {
                    bytes.push(b'\\');
                    rest = after;
                }
                [b'x', high, low, after @ ..] => {
                    bytes.push(hex(*high)? << 4 | hex(*low)?);
                    rest = after;
                }
                _ => return None,
            }
        }
        Some(Name(bytes))
    }
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|digit| digit as u8)
}

impl fmt::Display for Name {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for character in chunk.valid().chars() {
                match character {
                    '\\' => out.write_str("\\\\")?,
                    control if is_control(control) => {
                        let mut buffer = [0; 4];
                        for byte in control.encode_utf8(&mut buffer).bytes() {
                            write!(out, "\\x{byte:02x}")?;
                        }
                    }
                    character => fmt::Write::write_char(out, character)?,
                }
            }
            for byte in chunk.invalid() {
                write!(out, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// Controls of terminals, those that turn the direction of writing among them.
fn is_control(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

impl fmt::Debug for Name {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "\"{self}\"")
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Name::parse(&text).ok_or_else(|| serde::de::Error::custom(format!("no name: {text:?}")))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn name_shows_what_terminals_obey_as_numbers() {
        for (bytes, text) in [
            (&b"plain name"[..], "plain name"),
            ("grün".as_bytes(), "grün"),
            (b"a\\b", "a\\\\b"),
            (b"\x1b[2J\n", "\\x1b[2J\\x0a"),
            (b"\xff\xfe", "\\xff\\xfe"),
            ("\u{202e}gpj".as_bytes(), "\\xe2\\x80\\xaegpj"),
        ] {
            assert_eq!(Name(bytes.to_vec()).to_string(), text);
        }
        for wrong in ["\\", "\\x", "\\x1", "\\xg0", "\\n"] {
            assert_eq!(Name::parse(wrong), None);
        }
    }

    proptest! {
        #[test]
        fn name_of_any_bytes_survives_its_text(bytes: Vec<u8>) {
            let name = Name(bytes);
            prop_assert_eq!(Name::parse(&name.to_string()), Some(name));
        }
    }
}
