//! What images are called: `[REGISTRY/]PATH[:TAG][@DIGEST]`, as the distribution specification has it.
//!
//! A name is kept as it was given. Two names mean the same image if their full forms are equal, in which docker's
//! omissions are filled in: `app` is `docker.io/library/app:latest`.

use crate::digest::Digest;
use crate::error::{Error, Result};

const REGISTRY: &str = "docker.io";
const TAG_MAX: usize = 128;
const NAME_MAX: usize = 255;

/// A name taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Everything before the tag.
    pub repository: String,
    /// The tag.
    pub tag: Option<String>,
    /// The manifest.
    pub digest: Option<Digest>,
}

impl Reference {
    /// Takes a name apart. [`Error::BadName`] says what is wrong with it.
    pub fn parse(text: &str) -> Result<Reference> {
        let bad = |reason: &'static str| Error::BadName { name: text.escape_debug().to_string(), reason };
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(Digest::parse(digest)?)),
            None => (text, None),
        };
        let last = name.rfind('/').map_or(0, |slash| slash + 1);
        let (repository, tag) = match name[last..].find(':') {
            Some(colon) => (&name[..last + colon], Some(&name[last + colon + 1..])),
            None => (name, None),
        };
        if repository.is_empty() {
            return Err(bad("it is empty"));
        }
        if repository.len() > NAME_MAX {
            return Err(bad("it has over 255 characters"));
        }
        let (registry, path) = split_registry(repository);
        if registry.is_some_and(|registry| !is_registry(registry)) {
            return Err(bad("its registry is no host name with an optional port"));
        }
        if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(bad("what is before the tag must be in lower case"));
        }
        if !path.split('/').all(is_component) {
            return Err(bad("names are lower-case letters and digits, joined by `.`, `_`, `__` or `-`"));
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(bad(
                "a tag has 1 to 128 letters, digits, `_`, `.` and `-`, and begins with none of the last two",
            ));
        }
        Ok(Reference { repository: repository.to_owned(), tag: tag.map(ToOwned::to_owned), digest })
    }

    /// A name for an image that somebody gives: without a tag it gets `latest`, a digest is refused.
    pub fn new_name(text: &str) -> Result<String> {
        let reference = Reference::parse(text)?;
        let bad = |reason: &'static str| Err(Error::BadName { name: text.to_owned(), reason });
        if reference.digest.is_some() {
            return bad("a digest can't be chosen");
        }
        if reference.repository == "sha256" || Digest::from_hex(reference.repository.as_bytes()).is_some() {
            return bad("it would be taken for a digest");
        }
        Ok(match reference.tag {
            Some(_) => text.to_owned(),
            None => format!("{text}:latest"),
        })
    }

    /// The repository in full.
    pub fn full_repository(&self) -> String {
        match split_registry(&self.repository) {
            (None, path) if path.contains('/') => format!("{REGISTRY}/{path}"),
            (None | Some("docker.io" | "index.docker.io"), path) if !path.contains('/') => {
                format!("{REGISTRY}/library/{path}")
            }
            (Some("index.docker.io"), path) => format!("{REGISTRY}/{path}"),
            _ => self.repository.clone(),
        }
    }

    /// The name in full, without a digest: `docker.io/library/app:latest`.
    pub fn full_name(&self) -> String {
        format!("{}:{}", self.full_repository(), self.tag.as_deref().unwrap_or("latest"))
    }

    /// The name as docker shows it: `app:latest`.
    pub fn familiar_name(&self) -> String {
        let full = self.full_name();
        let short = full.strip_prefix("docker.io/library/").or_else(|| full.strip_prefix("docker.io/"));
        short.unwrap_or(&full).to_owned()
    }
}

/// The registry, if the first component is one: it has a dot or a colon, or is `localhost`.
fn split_registry(repository: &str) -> (Option<&str>, &str) {
    match repository.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (Some(first), rest),
        _ => (None, repository),
    }
}

fn is_registry(registry: &str) -> bool {
    let (host, port) = registry.split_once(':').unwrap_or((registry, "1"));
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    host.split('.').all(is_label) && !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())
}

/// Lower-case letters and digits, with one `.` or `_`, two `_` or any number of `-` between them.
fn is_component(component: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let edges = component.bytes().next().is_some_and(word) && component.bytes().next_back().is_some_and(word);
    let joints = component.split(|character: char| character.is_ascii() && word(character as u8));
    edges
        && joints
            .into_iter()
            .all(|joint| matches!(joint, "" | "." | "_" | "__") || joint.bytes().all(|byte| byte == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=TAG_MAX).contains(&tag.len())
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_taken_apart_and_filled_in() {
        for (text, repository, tag, full, familiar) in [
            ("app", "app", None, "docker.io/library/app:latest", "app:latest"),
            ("app:1", "app", Some("1"), "docker.io/library/app:1", "app:1"),
            ("me/app", "me/app", None, "docker.io/me/app:latest", "me/app:latest"),
            ("docker.io/app:x", "docker.io/app", Some("x"), "docker.io/library/app:x", "app:x"),
            ("index.docker.io/me/a", "index.docker.io/me/a", None, "docker.io/me/a:latest", "me/a:latest"),
            ("localhost/app", "localhost/app", None, "localhost/app:latest", "localhost/app:latest"),
            ("host:5000/a/b:T.1_-", "host:5000/a/b", Some("T.1_-"), "host:5000/a/b:T.1_-", "host:5000/a/b:T.1_-"),
            ("a.b/c__d--e", "a.b/c__d--e", None, "a.b/c__d--e:latest", "a.b/c__d--e:latest"),
        ] {
            let reference = Reference::parse(text).unwrap();
            assert_eq!((reference.repository.as_str(), reference.tag.as_deref()), (repository, tag), "{text}");
            assert_eq!(
                (reference.full_name().as_str(), reference.familiar_name().as_str()),
                (full, familiar),
                "{text}"
            );
        }
        let digest = Digest::of(b"x");
        assert_eq!(Reference::parse(&format!("app:1@{digest}")).unwrap().digest, Some(digest));
    }

    #[test]
    fn names_that_engines_would_refuse_are_refused() {
        let long = "a".repeat(256);
        for text in [
            "",
            ":1",
            "App",
            "a b",
            "-a",
            "a-",
            "a//b",
            "/a",
            "a/",
            "a:",
            "a:-1",
            "a..b",
            "a___b",
            "a@sha256:1",
            "a\nb",
            "b.c:x/a",
            "../a",
            "é",
            &long,
        ] {
            assert!(Reference::parse(text).is_err(), "{text:?}");
        }
        assert!(Reference::parse(&format!("a:{}", "t".repeat(129))).is_err());
    }

    #[test]
    fn new_names_get_a_tag_and_are_no_digests() {
        assert_eq!(Reference::new_name("app").unwrap(), "app:latest");
        assert_eq!(Reference::new_name("host:5000/app").unwrap(), "host:5000/app:latest");
        assert_eq!(Reference::new_name("app:1").unwrap(), "app:1");
        let digest = Digest::of(b"x");
        for text in [digest.to_string(), digest.hex(), format!("app@{digest}")] {
            assert!(Reference::new_name(&text).is_err(), "{text}");
        }
    }
}
