//! Ids and revisions: they become parts of addresses and paths, so what cannot be one is refused first.

use crate::HostError;

/// Checks the id of a model, `organisation/name` or (for a few old models) `name`.
///
/// # Errors
/// Not an id: other characters than letters, digits, `-`, `_`, `.`; `..` or `--`; more than 96 characters.
pub fn check_id(id: &str) -> Result<(), HostError> {
    let part = |p: &str| {
        !p.is_empty()
            && !p.starts_with(['.', '-'])
            && !p.ends_with(['.', '-'])
            && !p.contains("..")
            && !p.contains("--")
            && p.chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    if id.len() <= 96 && id.split('/').count() <= 2 && id.split('/').all(part) {
        Ok(())
    } else {
        Err(HostError::BadId(shown(id)))
    }
}

/// A branch, a tag or a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision(String);

impl Revision {
    /// # Errors
    /// Empty, longer than 200 characters, or with characters that no revision has.
    pub fn parse(text: &str) -> Result<Revision, HostError> {
        let good = !text.is_empty()
            && text.len() <= 200
            && text.split('/').all(|p| {
                !p.is_empty()
                    && !p.starts_with('.')
                    && !p.contains("..")
                    && p.chars()
                        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+'))
            });
        if good {
            Ok(Revision(text.into()))
        } else {
            Err(HostError::BadRevision(shown(text)))
        }
    }
    /// As the user wrote it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// Forty hexadecimal digits.
    pub fn is_commit(&self) -> bool {
        is_commit(&self.0)
    }
    /// As one segment of an address.
    pub(crate) fn segment(&self) -> String {
        self.0.replace('/', "%2F").replace('+', "%2B")
    }
}

pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.chars().all(|c| c.is_ascii_hexdigit())
}

fn shown(text: &str) -> String {
    let clean = |c: char| if c.is_control() { '?' } else { c };
    text.chars().take(100).map(clean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leads_out_of_a_path_is_no_id_and_no_revision() {
        for good in ["gpt2", "org/name", "01-ai/Yi-1.5-6B", "a/b_c.d"] {
            assert!(check_id(good).is_ok(), "{good}");
        }
        let long = "x".repeat(97);
        for bad in [
            "", "/", "a/", "/a", "a/b/c", "../etc", "a/..", "a/.b", "a--b/c", "a b/c", "a/b?x=1",
            "a/b#c", "a/b%2F", "a\\b", "a/b\n", &long,
        ] {
            assert!(check_id(bad).is_err(), "{bad:?}");
        }
        for good in ["main", "v1.0", "refs/pr/3", "a+b"] {
            assert!(Revision::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "", "..", "a/../b", "/a", "a//b", ".git", "a b", "a?b", "a\0b",
        ] {
            assert!(Revision::parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(
            Revision::parse("refs/pr/3").unwrap().segment(),
            "refs%2Fpr%2F3"
        );
    }
}
