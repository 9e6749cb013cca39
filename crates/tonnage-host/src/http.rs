//! Requests with limits: bytes, time, redirects; and a token that goes to its own host only.

use crate::{Env, HostError};
use std::io::Read;
use std::time::{Duration, Instant};
use ureq::http::Uri;
use ureq::{Agent, Body, Error};

/// Most redirects of one request.
const HOPS: usize = 5;

/// An answer that is neither an error of transport nor a redirect.
pub(crate) struct Answer {
    pub url: String,
    pub status: u16,
    pub headers: ureq::http::HeaderMap,
    body: Body,
}

impl Answer {
    /// A header's text, cleaned of control characters.
    pub fn header(&self, name: &str) -> Option<String> {
        let text = self.headers.get(name)?.to_str().ok()?;
        Some(text.chars().filter(|c| !c.is_control()).take(300).collect())
    }

    /// The whole body, which must not be larger than `most`.
    pub fn all(mut self, most: u64) -> Result<Vec<u8>, HostError> {
        let large = HostError::TooLarge {
            url: self.url.clone(),
            most,
        };
        if self.body.content_length().is_some_and(|n| n > most) {
            return Err(large);
        }
        let bytes = self.read(most + 1)?;
        if bytes.len() as u64 > most {
            return Err(large);
        }
        Ok(bytes)
    }

    /// At most the first `most` bytes; the rest is not waited for.
    pub fn read(&mut self, most: u64) -> Result<Vec<u8>, HostError> {
        let mut bytes = Vec::new();
        self.body
            .as_reader()
            .take(most)
            .read_to_end(&mut bytes)
            .map_err(|e| HostError::BadAnswer {
                url: self.url.clone(),
                problem: format!("the answer breaks off: {e}"),
            })?;
        Ok(bytes)
    }
}

/// A client of one hub.
pub(crate) struct Client {
    agent: Agent,
    home: Uri,
    token: Option<String>,
    timeout: Duration,
    end: Instant,
}

impl Client {
    /// # Errors
    /// The endpoint is not an address.
    pub fn new(env: &Env) -> Result<Client, HostError> {
        let home =
            parse(&env.endpoint).ok_or_else(|| HostError::BadEndpoint(env.endpoint.clone()))?;
        let here = loopback(&home);
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .max_response_header_size(64 << 10)
            .timeout_connect(Some(env.timeout))
            .timeout_recv_response(Some(env.timeout))
            .user_agent(concat!("tonnage/", env!("CARGO_PKG_VERSION")));
        if here {
            config = config.proxy(None);
        }
        // a token over plain http is for this machine only
        let safe = here || home.scheme_str() == Some("https");
        Ok(Client {
            agent: config.build().into(),
            token: env.token.clone().filter(|_| safe).map(|t| t.0),
            timeout: env.timeout,
            end: Instant::now() + env.deadline,
            home,
        })
    }

    /// Was a token sent?
    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// The hub's host, for messages.
    pub fn host(&self) -> String {
        self.home
            .authority()
            .map_or_else(String::new, |a| a.host().to_string())
    }

    /// A request, with the bytes `first..=last` asked for where `range` says so.
    ///
    /// # Errors
    /// No connection, no answer in time, too many or unfit redirects.
    pub fn get(&self, url: &str, range: Option<(u64, u64)>) -> Result<Answer, HostError> {
        let mut at = parse(url).ok_or_else(|| bad(url, "not an address"))?;
        for _ in 0..=HOPS {
            let shown = shown(&at);
            let left = self.end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.unreachable(&at, "it takes too long"));
            }
            let mut request = self.agent.get(at.clone());
            if let Some((first, last)) = range {
                request = request.header("Range", format!("bytes={first}-{last}"));
            }
            if let (Some(t), true) = (&self.token, same_origin(&at, &self.home)) {
                request = request.header("Authorization", format!("Bearer {t}"));
            }
            let answer = request
                .config()
                .timeout_global(Some(left.min(self.timeout * 6)))
                .build()
                .call()
                .map_err(|e| self.failed(&at, &e))?;
            let status = answer.status().as_u16();
            if !matches!(status, 301 | 302 | 303 | 307 | 308) {
                let (parts, body) = answer.into_parts();
                return Ok(Answer {
                    url: shown,
                    status,
                    headers: parts.headers,
                    body,
                });
            }
            let location = answer
                .headers()
                .get("Location")
                .and_then(|v| v.to_str().ok());
            let next = location
                .and_then(|l| join(&at, l))
                .ok_or_else(|| bad(&shown, "a redirect to nowhere"))?;
            if at.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(bad(&shown, "a redirect from https to http"));
            }
            at = next;
        }
        Err(bad(&shown(&at), "too many redirects"))
    }

    fn unreachable(&self, at: &Uri, problem: &str) -> HostError {
        HostError::Unreachable {
            host: at.authority().map_or_else(String::new, ToString::to_string),
            problem: problem.into(),
        }
    }

    fn failed(&self, at: &Uri, e: &Error) -> HostError {
        match e {
            Error::Timeout(_) => self.unreachable(
                at,
                &format!("no answer within {} s", self.timeout.as_secs_f64()),
            ),
            Error::HostNotFound => self.unreachable(at, "no such host"),
            Error::Io(_) | Error::ConnectionFailed | Error::InvalidProxyUrl => {
                self.unreachable(at, &e.to_string())
            }
            other => bad(&shown(at), &other.to_string()),
        }
    }
}

fn bad(url: &str, problem: &str) -> HostError {
    HostError::BadAnswer {
        url: url.into(),
        problem: problem.into(),
    }
}

/// Without query: it may hold a signature.
fn shown(u: &Uri) -> String {
    format!(
        "{}://{}{}",
        u.scheme_str().unwrap_or("http"),
        u.authority()
            .map_or("", |a| a.as_str().rsplit('@').next().unwrap_or("")),
        u.path()
    )
}

fn parse(text: &str) -> Option<Uri> {
    let u: Uri = text.parse().ok()?;
    let known = matches!(u.scheme_str(), Some("http" | "https"));
    (known && u.host().is_some_and(|h| !h.is_empty())).then_some(u)
}

/// The address that a `Location` means.
fn join(base: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next()?;
    let scheme = base.scheme_str()?;
    if location.starts_with("//") {
        return parse(&format!("{scheme}:{location}"));
    }
    if location.contains("://") {
        return parse(location);
    }
    let authority = base.authority()?;
    if location.starts_with('/') {
        return parse(&format!("{scheme}://{authority}{location}"));
    }
    let folder = base.path().rsplit_once('/').map_or("", |(f, _)| f);
    parse(&format!("{scheme}://{authority}{folder}/{location}"))
}

fn port(u: &Uri) -> u16 {
    u.port_u16().unwrap_or(if u.scheme_str() == Some("https") {
        443
    } else {
        80
    })
}

fn same_origin(a: &Uri, b: &Uri) -> bool {
    a.scheme_str() == b.scheme_str()
        && a.host().map(str::to_ascii_lowercase) == b.host().map(str::to_ascii_lowercase)
        && port(a) == port(b)
}

fn loopback(u: &Uri) -> bool {
    let host = u.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|a| a.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(t: &str) -> Uri {
        parse(t).unwrap()
    }

    #[test]
    fn a_location_is_read_in_all_its_forms() {
        let base = uri("https://hub.example/org/name/resolve/main/config.json");
        for (location, to) in [
            ("/api/x?y=1", "https://hub.example/api/x?y=1"),
            (
                "other.json",
                "https://hub.example/org/name/resolve/main/other.json",
            ),
            ("//cdn.example/f", "https://cdn.example/f"),
            ("https://cdn.example/f#part", "https://cdn.example/f"),
        ] {
            assert_eq!(join(&base, location).unwrap().to_string(), to, "{location}");
        }
        for nowhere in ["ftp://x/y", "https://", "file:///etc/passwd", "http://"] {
            assert!(join(&base, nowhere).is_none(), "{nowhere}");
        }
    }

    #[test]
    fn another_port_scheme_or_host_is_another_place() {
        let a = uri("https://hub.example/x");
        assert!(same_origin(&a, &uri("https://HUB.example:443/y")));
        for other in [
            "http://hub.example/x",
            "https://hub.example:444/x",
            "https://hub.example.evil.example/x",
            "https://cdn.hub.example/x",
        ] {
            assert!(!same_origin(&a, &uri(other)), "{other}");
        }
        assert!(loopback(&uri("http://127.0.0.1:9/")) && loopback(&uri("http://[::1]:9/")));
        assert!(!loopback(&uri("http://10.0.0.1/")));
    }

    #[test]
    fn a_signature_does_not_reach_a_message() {
        assert_eq!(
            shown(&uri("https://u:p@cdn.example/f?Signature=s")),
            "https://cdn.example/f"
        );
    }
}
