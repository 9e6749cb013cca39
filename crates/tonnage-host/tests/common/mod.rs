//! A tiny HTTP server and tiny models.
#![allow(dead_code)] // each test file uses its own part

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    pub headers: Vec<(String, String)>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(k, _)| k.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str())
    }
}

/// What is sent back.
pub enum Reply {
    /// Status, headers, body.
    Send(u16, Vec<(String, String)>, Vec<u8>),
    /// These very bytes, then the end.
    Raw(Vec<u8>),
    /// This head, then bytes without end.
    Endless(Vec<u8>),
    /// Nothing, for so many milliseconds.
    Silence(u64),
}

pub fn status(code: u16, headers: &[(&str, &str)]) -> Reply {
    let h = headers.iter().map(|(k, v)| ((*k).into(), (*v).into()));
    Reply::Send(code, h.collect(), b"{}".to_vec())
}

/// A file, whole or in part, as the request's Range says.
pub fn file(r: &Request, bytes: &[u8]) -> Reply {
    let commit = ("X-Repo-Commit".to_string(), COMMIT.to_string());
    let Some(range) = r.header("range").and_then(|v| v.strip_prefix("bytes=")) else {
        return Reply::Send(200, vec![commit], bytes.to_vec());
    };
    let (a, b) = range.split_once('-').unwrap();
    let (a, b): (usize, usize) = (a.parse().unwrap(), b.parse().unwrap());
    if a >= bytes.len() {
        return status(416, &[]);
    }
    let b = b.min(bytes.len() - 1);
    let span = format!("bytes {a}-{b}/{}", bytes.len());
    Reply::Send(
        206,
        vec![commit, ("Content-Range".into(), span)],
        bytes[a..=b].to_vec(),
    )
}

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A server until the test ends.
pub struct Server {
    pub port: u16,
    pub seen: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub fn new(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (seen.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, answer) = (log.clone(), answer.clone());
                std::thread::spawn(move || serve(stream, &log, &*answer));
            }
        });
        Server { port, seen }
    }
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
    pub fn requests(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }
    pub fn paths(&self) -> Vec<String> {
        self.requests().into_iter().map(|r| r.path).collect()
    }
}

fn serve(stream: TcpStream, log: &Mutex<Vec<Request>>, answer: &dyn Fn(&Request) -> Reply) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut out = stream;
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return;
    }
    let path = line.split(' ').nth(1).unwrap_or_default().to_string();
    let mut headers = Vec::new();
    loop {
        let mut h = String::new();
        if reader.read_line(&mut h).unwrap_or(0) == 0 || h.trim().is_empty() {
            break;
        }
        if let Some((k, v)) = h.split_once(':') {
            headers.push((k.trim().into(), v.trim().into()));
        }
    }
    let request = Request { path, headers };
    log.lock().unwrap().push(request.clone());
    match answer(&request) {
        Reply::Send(code, headers, body) => {
            let mut head = format!(
                "HTTP/1.1 {code} X\r\nContent-Length: {}\r\nConnection: close\r\n",
                body.len()
            );
            for (k, v) in headers {
                head += &format!("{k}: {v}\r\n");
            }
            let _ = out.write_all(format!("{head}\r\n").as_bytes());
            let _ = out.write_all(&body);
        }
        Reply::Raw(bytes) => {
            let _ = out.write_all(&bytes);
        }
        Reply::Endless(head) => {
            let _ = out.write_all(&head);
            while out.write_all(&[b' '; 65536]).is_ok() {}
        }
        Reply::Silence(ms) => std::thread::sleep(std::time::Duration::from_millis(ms)),
    }
    let _ = out.shutdown(std::net::Shutdown::Write);
    let _ = out.set_read_timeout(Some(std::time::Duration::from_millis(200)));
    let _ = reader.read(&mut [0; 16]);
}

/// A safetensors file: names with shapes (F32); its tensors are `fill` bytes.
pub fn safetensors(tensors: &[(&str, &[u64])]) -> Vec<u8> {
    let (mut parts, mut at) = (Vec::new(), 0u64);
    for (name, shape) in tensors {
        let end = at + 4 * shape.iter().product::<u64>();
        parts.push(format!(
            "\"{name}\":{{\"dtype\":\"F32\",\"shape\":{shape:?},\"data_offsets\":[{at},{end}]}}"
        ));
        at = end;
    }
    let header = format!("{{{}}}", parts.join(","));
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.resize(out.len() + at as usize, WEIGHT);
    out
}

/// The byte that every weight is made of.
pub const WEIGHT: u8 = 0xab;

/// A Llama of one layer: 64 x 8 embeddings, untied head.
pub const CONFIG: &str = r#"{"model_type":"llama","architectures":["LlamaForCausalLM"],"hidden_size":8,"intermediate_size":16,"num_hidden_layers":1,
"num_attention_heads":2,"num_key_value_heads":2,"vocab_size":64,"max_position_embeddings":128,"rms_norm_eps":1e-6,"tie_word_embeddings":false,"torch_dtype":"float32"}"#;

/// Its tensors.
pub fn tensors() -> Vec<(&'static str, &'static [u64])> {
    vec![
        ("model.embed_tokens.weight", &[64, 8]),
        ("model.layers.0.self_attn.q_proj.weight", &[8, 8]),
        ("model.layers.0.self_attn.k_proj.weight", &[8, 8]),
        ("model.layers.0.self_attn.v_proj.weight", &[8, 8]),
        ("model.layers.0.self_attn.o_proj.weight", &[8, 8]),
        ("model.layers.0.mlp.gate_proj.weight", &[16, 8]),
        ("model.layers.0.mlp.up_proj.weight", &[16, 8]),
        ("model.layers.0.mlp.down_proj.weight", &[8, 16]),
        ("model.layers.0.input_layernorm.weight", &[8]),
        ("model.layers.0.post_attention_layernorm.weight", &[8]),
        ("model.norm.weight", &[8]),
        ("lm_head.weight", &[64, 8]),
    ]
}

/// The two shards of the same tensors and their index.
pub fn sharded() -> [(&'static str, Vec<u8>); 3] {
    let all = tensors();
    let (a, b) = all.split_at(5);
    let (one, two) = (
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    );
    let entry = |file: &str, list: &[(&str, &[u64])]| {
        list.iter()
            .map(|(n, _)| format!("\"{n}\":\"{file}\""))
            .collect::<Vec<_>>()
            .join(",")
    };
    let sum: u64 = all.iter().map(|(_, s)| 4 * s.iter().product::<u64>()).sum();
    let index = format!(
        "{{\"metadata\":{{\"total_size\":{sum}}},\"weight_map\":{{{},{}}}}}",
        entry(one, a),
        entry(two, b)
    );
    [
        ("model.safetensors.index.json", index.into_bytes()),
        (one, safetensors(a)),
        (two, safetensors(b)),
    ]
}

/// A hub with one model, `org/tiny`, of these files.
pub fn hub(files: Vec<(&'static str, Vec<u8>)>) -> Server {
    Server::new(move |r| {
        let Some(rest) = r.path.strip_prefix("/org/tiny/resolve/") else {
            return status(401, &[("X-Error-Message", "Invalid username or password.")]);
        };
        let (revision, name) = rest.split_once('/').unwrap_or_default();
        if !["main", "v1", "refs%2Fpr%2F3", COMMIT].contains(&revision) {
            return status(404, &[("X-Error-Code", "RevisionNotFound")]);
        }
        match files.iter().find(|f| f.0 == name) {
            Some((_, bytes)) => file(r, bytes),
            None => status(
                404,
                &[("X-Error-Code", "EntryNotFound"), ("X-Repo-Commit", COMMIT)],
            ),
        }
    })
}

/// A cache with an entry for `id`, its revision `main` at [`COMMIT`]; as huggingface_hub lays it out (blobs, links, refs).
pub fn cache_entry(cache: &Path, id: &str, files: &[(&str, Vec<u8>)]) -> PathBuf {
    let entry = cache.join(format!("models--{}", id.replace('/', "--")));
    let snapshot = entry.join("snapshots").join(COMMIT);
    for d in ["blobs", "refs"] {
        std::fs::create_dir_all(entry.join(d)).unwrap();
    }
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::write(entry.join("refs/main"), COMMIT).unwrap();
    for (n, (name, bytes)) in files.iter().enumerate() {
        let blob = format!("{n:040x}");
        std::fs::write(entry.join("blobs").join(&blob), bytes).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(format!("../../blobs/{blob}"), snapshot.join(name)).unwrap();
        #[cfg(not(unix))]
        std::fs::write(snapshot.join(name), bytes).unwrap();
    }
    snapshot
}
