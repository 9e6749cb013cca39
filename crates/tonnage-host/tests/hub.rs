//! A hub as it behaves well and badly, over real HTTP on this machine.

mod common;
use common::*;
use std::time::{Duration, Instant};
use tonnage_host::{Env, HostError, ModelFiles, Origin, Secret, compare, find};
use tonnage_model::count::count;

fn env(s: &Server) -> Env {
    Env {
        endpoint: s.url(),
        timeout: Duration::from_secs(5),
        ..Env::default()
    }
}

fn get(s: &Server) -> Result<ModelFiles, HostError> {
    find(&env(s), "org/tiny", None)
}

fn whole() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("config.json", CONFIG.into()),
        ("model.safetensors", safetensors(&tensors())),
    ]
}

#[test]
fn config_and_header_come_and_no_weight_does() {
    let s = hub(whole());
    let m = get(&s).unwrap();
    assert_eq!(m.from, Origin::Hub(s.url()));
    assert_eq!(m.commit.as_deref(), Some(COMMIT));
    let c = compare(
        &count(m.config.as_ref().unwrap()).unwrap(),
        &m.tensors.unwrap(),
    );
    assert!(c.is_identical() && c.difference().is_none(), "{c:?}");
    assert_eq!((c.tensors, c.counted), (12, 1688));
    let header = u64::from_le_bytes(whole()[1].1[..8].try_into().unwrap());
    let ranges: Vec<String> = s
        .requests()
        .iter()
        .filter(|r| r.path.ends_with("model.safetensors"))
        .map(|r| r.header("range").expect("never the whole file").to_string())
        .collect();
    assert_eq!(
        ranges,
        ["bytes=0-7".to_string(), format!("bytes=8-{}", 7 + header)]
    );
    // the commit of the first answer pins the others
    assert_eq!(s.paths()[0], "/org/tiny/resolve/main/config.json");
    assert!(
        s.paths()[1..].iter().all(|p| p.contains(COMMIT)),
        "{:?}",
        s.paths()
    );
}

#[test]
fn a_sharded_model_has_the_tensors_of_all_its_files() {
    let mut files = vec![("config.json", CONFIG.into())];
    files.extend(sharded());
    let m = get(&hub(files.clone())).unwrap();
    assert_eq!(m.tensors.as_ref().map(Vec::len), Some(12));
    // a shard that is not there: the configuration is still an answer, and the check is missing
    files.pop();
    let m = get(&hub(files)).unwrap();
    assert!(m.tensors.is_none() && m.config.is_some());
    assert!(
        m.notes[0].contains("model-00002-of-00002.safetensors is not there"),
        "{:?}",
        m.notes
    );
}

#[test]
fn without_safetensors_the_note_says_so() {
    let m = get(&hub(vec![("config.json", CONFIG.into())])).unwrap();
    assert!(m.tensors.is_none());
    assert!(m.notes[0].contains("no safetensors files"), "{:?}", m.notes);
}

#[test]
fn a_server_without_ranges_is_read_up_to_the_header_only() {
    let files = whole();
    let s = Server::new(move |r| match r.path.rsplit('/').next() {
        Some("config.json") => Reply::Send(200, vec![], files[0].1.clone()),
        // a file of 100 GB: who waits for its end never returns
        Some("model.safetensors") => {
            let f = &files[1].1;
            let n = 8 + u64::from_le_bytes(f[..8].try_into().unwrap()) as usize;
            let head = "HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n";
            Reply::Endless([head.as_bytes(), &f[..n]].concat())
        }
        _ => status(404, &[]),
    });
    let m = get(&s).unwrap();
    assert_eq!(m.tensors.map(|t| t.len()), Some(12), "{:?}", m.notes);
}

#[test]
fn revisions_are_asked_for_by_name() {
    let s = hub(whole());
    for r in ["v1", COMMIT, "refs/pr/3"] {
        assert!(find(&env(&s), "org/tiny", Some(r)).is_ok(), "{r}");
    }
    let e = find(&env(&s), "org/tiny", Some("v9")).unwrap_err();
    assert_eq!(e.to_string(), "org/tiny has no revision `v9`");
    let before = s.paths().len();
    for bad in ["../../etc", "a b", ""] {
        let e = find(&env(&s), "org/tiny", Some(bad)).unwrap_err();
        assert!(matches!(e, HostError::BadRevision(_)), "{e}");
    }
    assert!(matches!(
        find(&env(&s), "../x", None),
        Err(HostError::BadId(_))
    ));
    assert_eq!(s.paths().len(), before, "nothing was asked");
}

#[test]
fn gated_private_and_missing_models_each_have_their_sentence() {
    let gated = |code| Server::new(move |_| status(code, &[("X-Error-Code", "GatedRepo")]));
    for code in [401, 403] {
        let s = gated(code);
        let e = get(&s).unwrap_err();
        assert_eq!(e.to_string(), "org/tiny is gated, and no token is given");
        let help = e.help().unwrap();
        assert!(
            help.contains(&format!("{}/org/tiny", s.url())) && help.contains("HF_TOKEN"),
            "{help}"
        );
        assert!(e.is_unavailable());
        let mut with = env(&s);
        with.token = Secret::new("hf_secret");
        let e = find(&with, "org/tiny", None).unwrap_err();
        assert!(
            e.to_string().ends_with("this token has no access to it"),
            "{e}"
        );
        assert!(!format!("{e:?}{:?}", with).contains("hf_secret"));
    }
    let s = hub(whole());
    let e = find(&env(&s), "org/other", None).unwrap_err();
    assert!(
        e.to_string().contains("does not exist, or is private"),
        "{e}"
    );
    assert!(
        e.to_string().contains("Invalid username or password."),
        "{e}"
    );
    let e = get(&Server::new(|_| {
        status(404, &[("X-Error-Code", "RepoNotFound")])
    }))
    .unwrap_err();
    assert!(e.to_string().contains("has no public model org/tiny") && !e.is_unavailable());
    let e = get(&hub(vec![("README.md", b"x".to_vec())])).unwrap_err();
    assert!(matches!(e, HostError::NoConfig { .. }), "{e}");
    for code in [429, 503] {
        let e = get(&Server::new(move |_| status(code, &[]))).unwrap_err();
        assert!(
            e.to_string().contains(&code.to_string()) && e.help().is_some(),
            "{e}"
        );
    }
}

#[test]
fn the_token_goes_to_its_own_host_only() {
    let cdn = {
        let files = whole();
        Server::new(move |r| file(r, &files[1].1))
    };
    let away = format!("{}/signed?Signature=abc", cdn.url());
    let s = Server::new(move |r| match r.path.rsplit('/').next() {
        Some("config.json") => status(307, &[("Location", "/api/resolve-cache/config")]),
        Some("config") => Reply::Send(200, vec![], CONFIG.into()),
        Some("model.safetensors") => status(302, &[("Location", &away)]),
        _ => status(404, &[]),
    });
    let mut e = env(&s);
    e.token = Secret::new("hf_secret");
    let m = find(&e, "org/tiny", None).unwrap();
    assert_eq!(m.tensors.map(|t| t.len()), Some(12), "{:?}", m.notes);
    for r in s.requests() {
        assert_eq!(
            r.header("authorization"),
            Some("Bearer hf_secret"),
            "{}",
            r.path
        );
    }
    assert!(!cdn.requests().is_empty());
    for r in cdn.requests() {
        assert_eq!(r.header("authorization"), None, "{}", r.path);
        assert!(r.header("range").is_some());
    }
}

#[test]
fn redirects_end() {
    let e = get(&Server::new(|_| status(302, &[("Location", "/again")]))).unwrap_err();
    assert!(e.to_string().contains("too many redirects"), "{e}");
    for nowhere in ["", "ftp://x/y", "file:///etc/passwd"] {
        let e = get(&Server::new(move |_| status(302, &[("Location", nowhere)]))).unwrap_err();
        assert!(e.to_string().contains("redirect"), "{nowhere}: {e}");
    }
    assert!(get(&Server::new(|_| status(302, &[]))).is_err());
}

#[test]
fn hostile_answers_are_refused_soon_and_by_name() {
    let header = |n: u64| {
        move |r: &Request| match r.path.rsplit('/').next() {
            Some("config.json") => file(r, CONFIG.as_bytes()),
            Some("model.safetensors") => file(r, &[&n.to_le_bytes()[..], b"{}"].concat()),
            _ => status(404, &[("X-Error-Code", "EntryNotFound")]),
        }
    };
    for n in [0, 1, 100_000_001, u64::MAX, 1 << 40] {
        let m = get(&Server::new(header(n))).unwrap();
        assert!(m.tensors.is_none() && !m.notes.is_empty(), "{n}");
    }
    let large = get(&Server::new(|_| {
        Reply::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{".to_vec())
    }));
    assert!(
        matches!(large, Err(HostError::TooLarge { .. })),
        "{large:?}"
    );
    let start = Instant::now();
    let endless = get(&Server::new(|_| {
        Reply::Endless("HTTP/1.1 200 OK\r\n\r\n".into())
    }));
    assert!(
        matches!(endless, Err(HostError::TooLarge { .. })),
        "{endless:?}"
    );
    assert!(start.elapsed() < Duration::from_secs(20));
    for raw in [
        "",
        "hello",
        "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{",
        "HTTP/1.1 200 OK\r\n\r\nnot json",
        "HTTP/1.1 200 OK\r\n\r\n[1]",
        "HTTP/1.1 200 OK\r\n\r\n{\"hidden_size\":0,\"model_type\":\"llama\"}",
    ] {
        let e = get(&Server::new(move |_| Reply::Raw(raw.into())));
        assert!(e.is_err(), "{raw}");
    }
    // a part that is not the one asked for
    let e = get(&Server::new(|r| match r.path.rsplit('/').next() {
        Some("config.json") => file(r, CONFIG.as_bytes()),
        Some("model.safetensors") => Reply::Send(
            206,
            vec![("Content-Range".into(), "bytes 100-107/200".into())],
            vec![2; 8],
        ),
        _ => status(404, &[]),
    }))
    .unwrap();
    assert!(e.notes[0].contains("another part"), "{:?}", e.notes);
    // an index that leads out of the repository
    let s = hub(vec![
        ("config.json", CONFIG.into()),
        (
            "model.safetensors.index.json",
            br#"{"weight_map":{"a":"../../x.safetensors"}}"#.to_vec(),
        ),
    ]);
    let m = get(&s).unwrap();
    assert!(m.notes[0].contains("not the plain name"), "{:?}", m.notes);
    assert!(s.paths().iter().all(|p| !p.contains("..")));
}

#[test]
fn silence_ends_in_time() {
    let s = Server::new(|_| Reply::Silence(10_000));
    let mut e = env(&s);
    e.timeout = Duration::from_millis(300);
    let start = Instant::now();
    let err = find(&e, "org/tiny", None).unwrap_err();
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
    assert!(matches!(err, HostError::Unreachable { .. }), "{err:?}");
    // nobody listens
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    e.endpoint = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    let err = find(&e, "org/tiny", None).unwrap_err();
    assert!(matches!(err, HostError::Unreachable { .. }), "{err:?}");
    assert!(err.help().unwrap().contains("HTTPS_PROXY"));
    for bad in ["", "huggingface.co", "ftp://x", "http://"] {
        e.endpoint = bad.into();
        let err = find(&e, "org/tiny", None).unwrap_err();
        assert!(matches!(err, HostError::BadEndpoint(_)), "{bad}: {err:?}");
    }
}

#[test]
fn offline_is_a_refusal_without_a_request() {
    let s = hub(whole());
    let mut e = env(&s);
    e.offline = Some("HF_HUB_OFFLINE");
    let start = Instant::now();
    let err = find(&e, "org/tiny", None).unwrap_err();
    assert!(start.elapsed() < Duration::from_millis(100));
    assert!(err.to_string().contains("HF_HUB_OFFLINE forbids"), "{err}");
    assert!(err.is_unavailable() && s.requests().is_empty());
}

#[test]
fn an_adapters_repository_gives_its_base_by_name() {
    let s = hub(vec![(
        "adapter_config.json",
        br#"{"peft_type":"LORA","base_model_name_or_path":"org/base","r":8}"#.to_vec(),
    )]);
    let m = get(&s).unwrap();
    assert!(m.config.is_none());
    assert_eq!(m.adapter.unwrap()["base_model_name_or_path"], "org/base");
}
