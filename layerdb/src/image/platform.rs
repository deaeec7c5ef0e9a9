//! Which of an index's images is meant.

use std::fmt;

use crate::error::{Error, Result};

/// What images are made for, in Go's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// Operating system.
    pub os: String,
    /// Processor architecture.
    pub architecture: String,
    /// Variant of it; `None`: any.
    pub variant: Option<String>,
}

impl Platform {
    /// This machine.
    pub fn host() -> Platform {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Platform { os: "linux".into(), architecture: architecture.into(), variant: None }
    }

    /// Reads `linux/arm64` or `linux/arm/v7`.
    pub fn parse(text: &str) -> Result<Platform> {
        let bad = || Error::BadPlatform { text: text.to_owned() };
        let is_word =
            |word: &&str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'.');
        let words: Vec<&str> = text.split('/').filter(is_word).collect();
        if words.len() != text.split('/').count() {
            return Err(bad());
        }
        match words.as_slice() {
            [os, architecture] => {
                Ok(Platform { os: (*os).into(), architecture: (*architecture).into(), variant: None })
            }
            [os, architecture, variant] => Ok(Platform {
                os: (*os).into(),
                architecture: (*architecture).into(),
                variant: Some((*variant).into()),
            }),
            _ => Err(bad()),
        }
    }

    /// Whether an image that says this of itself is meant. What it doesn't say is no hindrance.
    pub(super) fn fits(&self, os: &str, architecture: &str, variant: Option<&str>) -> bool {
        let same = |wanted: &str, told: &str| told.is_empty() || told == wanted;
        let variant_fits = match (&self.variant, variant) {
            (Some(wanted), Some(told)) => same(wanted, told),
            _ => true,
        };
        same(&self.os, os) && same(&self.architecture, architecture) && variant_fits
    }

    pub(super) fn show(os: &str, architecture: &str, variant: Option<&str>) -> String {
        match variant.filter(|variant| !variant.is_empty()) {
            Some(variant) => format!("{os}/{architecture}/{variant}"),
            None => format!("{os}/{architecture}"),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&Platform::show(&self.os, &self.architecture, self.variant.as_deref()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn platforms_are_read_and_shown() {
        for text in ["linux/amd64", "linux/arm/v7"] {
            assert_eq!(Platform::parse(text).unwrap().to_string(), text);
        }
        for text in ["", "linux", "linux/", "/arm", "linux/arm/v7/x", "linux arm", "linux//v7"] {
            assert!(Platform::parse(text).is_err(), "{text}");
        }
        let wanted = Platform::parse("linux/arm/v7").unwrap();
        assert!(wanted.fits("linux", "arm", Some("v7")) && wanted.fits("", "", None));
        assert!(!wanted.fits("linux", "arm", Some("v6")) && !wanted.fits("linux", "arm64", None));
    }
}
