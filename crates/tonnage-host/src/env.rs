//! What the environment says about hubs and caches, by the variables of `huggingface_hub` (1.x, constants.py and utils/_auth.py).

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// A token; its text never appears in a message.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub(crate) String);

impl Secret {
    /// From a text; white space around it is not part of it.
    pub fn new(text: &str) -> Option<Secret> {
        let t = text.replace(['\r', '\n'], "");
        let t = t.trim();
        (!t.is_empty()).then(|| Secret(t.into()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(a token)")
    }
}

/// The settings of hub and cache.
#[derive(Clone, Debug)]
pub struct Env {
    /// Where `models--org--name` folders are.
    pub cache: Option<PathBuf>,
    /// The hub's address, without a slash at its end.
    pub endpoint: String,
    pub token: Option<Secret>,
    /// No network: the variable that says so.
    pub offline: Option<&'static str>,
    /// To connect, and to wait for an answer.
    pub timeout: Duration,
    /// For everything together.
    pub deadline: Duration,
}

impl Default for Env {
    /// The public hub, no cache, no token.
    fn default() -> Env {
        Env {
            cache: None,
            endpoint: "https://huggingface.co".into(),
            token: None,
            offline: None,
            timeout: Duration::from_secs(10),
            deadline: Duration::from_secs(120),
        }
    }
}

impl Env {
    /// As this process sees it. The token's file is read.
    pub fn of_process() -> Env {
        Env::by(|k| std::env::var_os(k))
    }

    /// By a lookup of variables.
    pub fn by(var: impl Fn(&str) -> Option<OsString>) -> Env {
        let set = |k: &str| var(k).filter(|v| !v.is_empty());
        let text = |k: &str| set(k).and_then(|v| v.into_string().ok());
        let home = set("HOME")
            .or_else(|| set("USERPROFILE"))
            .map(PathBuf::from);
        let expand = |v: OsString| {
            let p = PathBuf::from(v);
            match (p.strip_prefix("~"), &home) {
                (Ok(rest), Some(h)) => h.join(rest),
                _ => p,
            }
        };
        let hf_home = set("HF_HOME").map(expand).or_else(|| {
            set("XDG_CACHE_HOME")
                .map(expand)
                .or_else(|| home.as_ref().map(|h| h.join(".cache")))
                .map(|c| c.join("huggingface"))
        });
        let cache = set("HF_HUB_CACHE")
            .or_else(|| set("HUGGINGFACE_HUB_CACHE"))
            .map(expand)
            .or_else(|| hf_home.as_ref().map(|h| h.join("hub")));
        let token_file = set("HF_TOKEN_PATH")
            .map(expand)
            .or_else(|| hf_home.as_ref().map(|h| h.join("token")));
        let is_true =
            |v: String| matches!(v.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE");
        let token = text("HF_TOKEN")
            .or_else(|| text("HUGGING_FACE_HUB_TOKEN"))
            .and_then(|t| Secret::new(&t))
            .or_else(|| {
                if text("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(is_true) {
                    return None;
                }
                crate::local::small_text(&token_file?, 64 << 10).and_then(|t| Secret::new(&t))
            });
        // as in the library: the second variable counts only where the first is not set
        let offline = match (text("HF_HUB_OFFLINE"), text("TRANSFORMERS_OFFLINE")) {
            (Some(v), _) => is_true(v).then_some("HF_HUB_OFFLINE"),
            (None, Some(v)) => is_true(v).then_some("TRANSFORMERS_OFFLINE"),
            _ => None,
        };
        let d = Env::default();
        Env {
            cache,
            endpoint: text("HF_ENDPOINT")
                .map(|e| e.trim().trim_end_matches('/').to_string())
                .filter(|e| !e.is_empty())
                .unwrap_or(d.endpoint),
            token,
            offline,
            timeout: text("HF_HUB_DOWNLOAD_TIMEOUT")
                .and_then(|t| t.trim().parse().ok())
                .filter(|s| (1..=600).contains(s))
                .map_or(d.timeout, Duration::from_secs),
            deadline: d.deadline,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by(vars: &[(&str, &str)]) -> Env {
        Env::by(|k| vars.iter().find(|(n, _)| *n == k).map(|(_, v)| v.into()))
    }

    #[test]
    fn the_cache_is_where_the_most_particular_variable_says() {
        let all = [
            ("HF_HUB_CACHE", "/a"),
            ("HUGGINGFACE_HUB_CACHE", "/b"),
            ("HF_HOME", "/c"),
            ("XDG_CACHE_HOME", "/d"),
            ("HOME", "/e"),
        ];
        for (n, path) in [
            "/a",
            "/b",
            "/c/hub",
            "/d/huggingface/hub",
            "/e/.cache/huggingface/hub",
        ]
        .iter()
        .enumerate()
        {
            assert_eq!(by(&all[n..]).cache, Some(path.into()));
        }
        assert_eq!(by(&[]).cache, None);
        let e = by(&[("HF_HOME", "~/models"), ("HOME", "/e")]);
        assert_eq!(e.cache, Some("/e/models/hub".into()));
    }

    #[test]
    fn the_token_is_the_variables_else_the_files_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap();
        std::fs::write(dir.path().join("token"), "hf_file\n").unwrap();
        std::fs::write(dir.path().join("other"), "hf_other\n").unwrap();
        let other = dir.path().join("other");
        let token = |vars: &[(&str, &str)]| by(vars).token.map(|t| t.0);
        let home_var = ("HF_HOME", home);
        assert_eq!(token(&[home_var]).as_deref(), Some("hf_file"));
        let path_var = ("HF_TOKEN_PATH", other.to_str().unwrap());
        assert_eq!(token(&[home_var, path_var]).as_deref(), Some("hf_other"));
        let own = ("HF_TOKEN", " hf_own\r\n");
        assert_eq!(token(&[home_var, own]).as_deref(), Some("hf_own"));
        let off = ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1");
        assert_eq!(token(&[home_var, off]), None);
        assert!(!format!("{:?}", by(&[own])).contains("hf_own"));
    }

    #[test]
    fn offline_is_what_the_library_takes_for_it() {
        for (v, off) in [("1", true), ("true", true), ("ON", true), ("0", false)] {
            assert_eq!(by(&[("HF_HUB_OFFLINE", v)]).offline.is_some(), off, "{v}");
        }
        assert!(by(&[("TRANSFORMERS_OFFLINE", "1")]).offline.is_some());
        let both = [("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")];
        assert!(by(&both).offline.is_none());
    }

    #[test]
    fn a_mirrors_address_loses_its_last_slash() {
        let e = by(&[("HF_ENDPOINT", "https://mirror.example/")]);
        assert_eq!(e.endpoint, "https://mirror.example");
        assert_eq!(
            by(&[("HF_ENDPOINT", "")]).endpoint,
            "https://huggingface.co"
        );
    }
}
