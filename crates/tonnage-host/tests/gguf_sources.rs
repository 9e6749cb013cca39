//! Model files of llama.cpp from a hub, over real HTTP on this machine, and from Ollama's store.

mod common;
use common::*;
use std::time::Duration;
use tonnage_host::{Env, HostError, ollama, ollama_stores, remote_gguf};

/// A GGUF file with one fp32 tensor of `n` elements and `words` bytes of text in its metadata, for part `no` of `count`.
fn gguf(n: u64, words: usize, split: Option<(u16, u16)>) -> Vec<u8> {
    let mut b = b"GGUF".to_vec();
    let name = format!("t{}", split.map_or(0, |s| s.0));
    let string = |b: &mut Vec<u8>, s: &str| {
        b.extend((s.len() as u64).to_le_bytes());
        b.extend(s.as_bytes());
    };
    b.extend(3u32.to_le_bytes());
    b.extend(1u64.to_le_bytes());
    b.extend((2 + split.map_or(0, |_| 3u64)).to_le_bytes());
    for (k, v) in [
        ("general.architecture", "llama"),
        ("general.description", &"x".repeat(words)),
    ] {
        string(&mut b, k);
        b.extend(8u32.to_le_bytes());
        string(&mut b, v);
    }
    if let Some((no, count)) = split {
        for (k, v) in [("split.no", no), ("split.count", count)] {
            string(&mut b, k);
            b.extend(2u32.to_le_bytes());
            b.extend(v.to_le_bytes());
        }
        string(&mut b, "split.tensors.count");
        b.extend(5u32.to_le_bytes());
        b.extend(i32::from(count).to_le_bytes());
    }
    string(&mut b, &name);
    b.extend(1u32.to_le_bytes());
    b.extend(n.to_le_bytes());
    b.extend(0u32.to_le_bytes());
    b.extend(0u64.to_le_bytes());
    b.resize(b.len().next_multiple_of(32), 0);
    b.resize(b.len() + 4 * n as usize, 0);
    b
}

fn hub_of(files: Vec<(&'static str, Vec<u8>)>) -> Server {
    Server::new(move |r| {
        if r.path == "/api/models/org/m-GGUF" {
            let names: Vec<String> = files
                .iter()
                .map(|f| format!("{{\"rfilename\":\"{}\"}}", f.0))
                .collect();
            let body = format!("{{\"siblings\":[{}]}}", names.join(","));
            return Reply::Send(200, vec![], body.into_bytes());
        }
        let name = r
            .path
            .rsplit_once("/resolve/")
            .and_then(|(_, n)| n.split_once('/'));
        match files.iter().find(|f| name.is_some_and(|n| n.1 == f.0)) {
            Some((_, bytes)) => file(r, bytes),
            None => status(404, &[("X-Error-Code", "EntryNotFound")]),
        }
    })
}

fn env(s: &Server) -> Env {
    Env {
        endpoint: s.url(),
        timeout: Duration::from_secs(5),
        ..Env::default()
    }
}

#[test]
fn a_quantisation_is_found_and_only_headers_come() {
    let s = hub_of(vec![
        ("mmproj-m-F16.gguf", gguf(8, 1, None)),
        ("m-IQ4_XS.gguf", gguf(8, 1, None)),
        ("m-Q8_0.gguf", gguf(1 << 20, 700_000, None)),
        ("m-Q4_K_M.gguf", gguf(2 << 20, 1, None)),
        (
            "big/m-BF16-00001-of-00002.gguf",
            gguf(1 << 20, 1, Some((0, 2))),
        ),
        (
            "big/m-BF16-00002-of-00002.gguf",
            gguf(1 << 20, 1, Some((1, 2))),
        ),
    ]);
    // llama.cpp's default, and any case
    for name in ["org/m-GGUF", "org/m-GGUF:q4_k_m", "org/m-GGUF:latest"] {
        let r = remote_gguf(&env(&s), name, None).unwrap();
        assert_eq!(r.files, ["m-Q4_K_M.gguf"]);
        assert_eq!(r.commit.as_deref(), Some(COMMIT));
        // 8 MB of weights stay there
        assert!(r.fetched <= 256 << 10, "{}", r.fetched);
    }
    // a header larger than the first range
    let r = remote_gguf(&env(&s), "org/m-GGUF:Q8_0", None).unwrap();
    assert!((700_000..3 << 20).contains(&r.fetched), "{}", r.fetched);
    // both parts of a split model, in a folder
    let r = remote_gguf(&env(&s), "org/m-GGUF:BF16", None).unwrap();
    assert_eq!(r.files.len(), 2);
    assert_eq!(r.model.tensors.len(), 2);
    let r = remote_gguf(&env(&s), "org/m-GGUF", Some("m-IQ4_XS.gguf")).unwrap();
    assert_eq!(r.model.tensors.len(), 1);
    // every request of a file asked for a range
    for r in s.requests().iter().filter(|r| r.path.contains("resolve")) {
        assert!(r.header("range").is_some(), "{}", r.path);
    }
}

#[test]
fn what_a_hub_does_not_have_is_said() {
    let s = hub_of(vec![("m-Q8_0.gguf", b"GGUF no such thing".to_vec())]);
    let e = |name: &str| remote_gguf(&env(&s), name, None).unwrap_err();
    assert!(matches!(e("org/m-GGUF:Q2_K"), HostError::NoGguf { .. }));
    assert!(matches!(e("org/other:Q2_K"), HostError::NotFound { .. }));
    assert!(matches!(e("../x"), HostError::BadId(_)));
    assert!(!matches!(e("org/m-GGUF"), HostError::NotFound { .. }));
    let offline = Env {
        offline: Some("HF_HUB_OFFLINE"),
        ..env(&s)
    };
    let e = remote_gguf(&offline, "org/m-GGUF", None).unwrap_err();
    assert!(matches!(e, HostError::Offline { .. }));
}

#[test]
fn ollamas_store_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let digest = |c: char| c.to_string().repeat(64);
    let write = |path: &str, text: &str| {
        let p = dir.path().join(path);
        std::fs::create_dir_all(p.parent().unwrap()).unwrap();
        std::fs::write(p, text).unwrap();
    };
    let layers = format!(
        r#"{{"layers":[{{"mediaType":"application/vnd.ollama.image.model","digest":"sha256:{}"}},
        {{"mediaType":"application/vnd.ollama.image.params","digest":"sha256:{}"}}]}}"#,
        digest('a'),
        digest('b')
    );
    write("manifests/registry.ollama.ai/library/m/3b", &layers);
    write("manifests/hf.co/org/m-GGUF/Q4_K_M", &layers);
    write(
        &format!("blobs/sha256-{}", digest('b')),
        r#"{"num_ctx":8192}"#,
    );
    let stores = [dir.path().to_path_buf()];
    for name in ["m:3b", "library/m:3b", "hf.co/org/m-GGUF:Q4_K_M"] {
        let m = ollama(&stores, name).unwrap();
        assert_eq!(m.num_ctx, Some(8192));
        assert!(m.file.ends_with(format!("blobs/sha256-{}", digest('a'))));
        assert!(!m.projector);
    }
    let e = ollama(&stores, "m").unwrap_err();
    assert!(matches!(e, HostError::NotInOllama { .. }));
    assert!(e.is_unavailable() && e.to_string().contains("no model m"));
    for bad in ["", "../m", "m:../x", "a/b/c/d", "m:"] {
        assert!(
            matches!(ollama(&stores, bad), Err(HostError::BadOllamaName(_))),
            "{bad}"
        );
    }
    // a manifest that points elsewhere
    write(
        "manifests/registry.ollama.ai/library/evil/latest",
        r#"{"layers":[{"mediaType":"application/vnd.ollama.image.model","digest":"sha256:../../x"}]}"#,
    );
    assert!(matches!(
        ollama(&stores, "evil"),
        Err(HostError::Unreadable { .. })
    ));
    assert_eq!(
        ollama_stores(|k| (k == "OLLAMA_MODELS").then(|| "/m".into())),
        [std::path::PathBuf::from("/m")]
    );
}
