//! The worst-case graphs node by node against recorded ones (models cut to their first blocks), and the buffers they lead to.

use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use tonnage_core::serve::llamacpp::ggml::{Graph, Op};
use tonnage_core::serve::llamacpp::{Device, FlashAttention, Kind, Load, Settings};
use tonnage_core::serve::llamacpp::{estimate, graph};
use tonnage_model::readers::gguf::{Gguf, TensorInfo, Value as Meta};

const FOLDER: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../groundtruth/llamacpp-graphs"
);

/// Metadata of the models: architecture, then numbers.
fn metadata(model: &str) -> (&'static str, Vec<(&'static str, f64)>) {
    let attention = |embd: u32, heads: u32, kv: u32, head: u32| {
        vec![
            ("embedding_length", f64::from(embd)),
            ("attention.head_count", f64::from(heads)),
            ("attention.head_count_kv", f64::from(kv)),
            ("attention.key_length", f64::from(head)),
            ("attention.value_length", f64::from(head)),
            ("context_length", 131_072.0),
        ]
    };
    let with = |mut a: Vec<(&'static str, f64)>, more: &[(&'static str, f64)]| {
        for (k, v) in more {
            a.retain(|x| x.0 != *k);
            a.push((k, *v));
        }
        a
    };
    let deepseek = [
        ("attention.kv_lora_rank", 512.0),
        ("rope.dimension_count", 64.0),
        ("leading_dense_block_count", 1.0),
        ("expert_count", 64.0),
        ("expert_used_count", 6.0),
        ("expert_weights_scale", 1.0),
    ];
    match model {
        "llama-3.1-8b" => ("llama", attention(4096, 32, 8, 128)),
        "mistral-7b-v0.3" => ("llama", attention(4096, 32, 8, 128)),
        "mixtral-8x7b" => (
            "llama",
            with(
                attention(4096, 32, 8, 128),
                &[("expert_count", 8.0), ("expert_used_count", 2.0)],
            ),
        ),
        "qwen2.5-1.5b" => ("qwen2", attention(1536, 12, 2, 128)),
        "qwen3-8b" => ("qwen3", attention(4096, 32, 8, 128)),
        "qwen3-30b-a3b" => (
            "qwen3moe",
            with(
                attention(2048, 32, 4, 128),
                &[("expert_count", 128.0), ("expert_used_count", 8.0)],
            ),
        ),
        "phi-3-mini-4k" => ("phi3", attention(3072, 32, 32, 96)),
        "gpt2" => ("gpt2", attention(768, 12, 12, 64)),
        "gemma-2-9b" => (
            "gemma2",
            with(
                attention(3584, 16, 8, 256),
                &[("attention.sliding_window", 4096.0)],
            ),
        ),
        "gemma-3-4b" => (
            "gemma3",
            with(
                attention(2560, 8, 4, 256),
                &[("attention.sliding_window", 1024.0)],
            ),
        ),
        "gpt-oss-20b" => (
            "gpt-oss",
            with(
                attention(2880, 64, 8, 64),
                &[
                    ("attention.sliding_window", 128.0),
                    ("expert_count", 32.0),
                    ("expert_used_count", 4.0),
                ],
            ),
        ),
        "deepseek-v2-lite" => (
            "deepseek2",
            with(
                with(attention(2048, 16, 1, 576), &deepseek),
                &[
                    ("attention.value_length", 512.0),
                    ("attention.key_length_mla", 192.0),
                    ("attention.value_length_mla", 128.0),
                ],
            ),
        ),
        "deepseek-v2-lite-nomla" => (
            "deepseek2",
            with(
                with(attention(2048, 16, 16, 192), &deepseek),
                &[("attention.value_length", 128.0)],
            ),
        ),
        "mamba-2.8b" => (
            "mamba",
            vec![
                ("embedding_length", 2560.0),
                ("context_length", 1_048_576.0),
                ("attention.head_count", 0.0),
                ("ssm.conv_kernel", 4.0),
                ("ssm.inner_size", 5120.0),
                ("ssm.state_size", 16.0),
                ("ssm.time_step_rank", 160.0),
            ],
        ),
        other => panic!("no metadata of {other}"),
    }
}

/// The model that a recorded graph was made of: its weights are the graph's own.
fn model(head: &Value, tensors: &[Value]) -> Gguf {
    let (arch, numbers) = metadata(head["model"].as_str().unwrap());
    let mut metadata = BTreeMap::new();
    metadata.insert("general.architecture".into(), Meta::Text(arch.into()));
    let layers = head["layers"].as_u64().unwrap();
    metadata.insert(format!("{arch}.block_count"), Meta::Unsigned(layers));
    for (k, v) in numbers {
        metadata.insert(format!("{arch}.{k}"), Meta::Unsigned(v as u64));
    }
    let mut g = Gguf {
        metadata,
        alignment: 32,
        version: 3,
        ..Gguf::default()
    };
    let weights = tensors.iter().filter(|t| {
        let name = t["name"].as_str().unwrap();
        t["k"] == "leaf" && t["ext"] == 1 && !name.starts_with("cache_")
    });
    for t in weights {
        let name = t["name"].as_str().unwrap().to_string();
        if g.tensor(&name).is_some() {
            // a tied head stands in the graph twice
            continue;
        }
        let ne = serde_json::from_value(t["ne"].clone()).unwrap();
        let bytes = t["bytes"].as_u64().unwrap();
        g.tensors.push(TensorInfo {
            name,
            ggml_type: t["type"].as_str().unwrap().parse().unwrap(),
            ne,
            offset: 0,
            bytes,
            part: 0,
        });
    }
    g
}

fn settings(head: &Value) -> Settings {
    let cuda = head["compute"].get("CUDA0").is_some();
    let cache = head["cache_type"].as_str().unwrap().parse().unwrap();
    Settings {
        context_len: head["n_ctx"].as_u64().unwrap(),
        n_ubatch: head["n_ubatch"].as_u64().unwrap(),
        n_seq: head["n_seq"].as_u64().unwrap(),
        kv_unified: head["kv_unified"].as_bool().unwrap(),
        n_outputs_max: head["n_out"].as_u64().unwrap(),
        flash_attention: match head["flash_attn"].as_str().unwrap() {
            "off" => FlashAttention::Off,
            "on" => FlashAttention::On,
            _ => FlashAttention::Auto,
        },
        type_k: cache,
        type_v: cache,
        devices: if cuda {
            vec![Device::default()]
        } else {
            vec![]
        },
        gpu_layers: if cuda { 999 } else { 0 },
        load: Load::Read,
        // recorded graphs name the layer's own buffers
        repack: false,
        ..Settings::default()
    }
}

fn op_name(op: Op) -> String {
    match op {
        Op::Unary(u) => format!("{u:?}").to_uppercase(),
        Op::FlashAttn => "FLASH_ATTN_EXT".into(),
        other => {
            let mut out = String::new();
            for c in format!("{other:?}").chars() {
                if c.is_uppercase() && !out.is_empty() {
                    out.push('_');
                }
                out.push(c.to_ascii_uppercase());
            }
            out
        }
    }
}

/// The first difference between the nodes.
fn difference(g: &Graph, tensors: &[Value]) -> Option<String> {
    let nodes: Vec<&Value> = tensors.iter().filter(|t| t["k"] == "node").collect();
    // recorded id to ours
    let mut same: HashMap<i64, u32> = HashMap::new();
    for (i, (ours, rec)) in g.nodes.iter().zip(&nodes).enumerate() {
        let t = g.get(*ours);
        let (op, name) = (op_name(t.op), rec["op"].as_str().unwrap());
        // gated activations are recorded by their own names
        let same_op = op == name || (t.op == Op::Glu && name.contains("GLU"));
        let shape = serde_json::json!([t.ne, t.nb, t.ty.name()]);
        let recorded = serde_json::json!([rec["ne"], rec["nb"], rec["type"]]);
        let said = || {
            format!(
                "node {i} {} ({name}): ours {op} {shape}, recorded {recorded}",
                rec["name"]
            )
        };
        if !same_op || shape != recorded || t.bytes() != rec["bytes"].as_u64().unwrap() {
            return Some(said());
        }
        same.insert(rec["id"].as_i64().unwrap(), *ours);
        let src: Vec<i64> = serde_json::from_value(rec["src"].clone()).unwrap();
        if src.len() != t.src.len() {
            return Some(format!("{}: sources {src:?}, ours {:?}", said(), t.src));
        }
        for (theirs, ours) in src.iter().zip(&t.src) {
            if *same.entry(*theirs).or_insert(*ours) != *ours {
                return Some(format!("{}: source {theirs}", said()));
            }
        }
        let out = rec["out"] == 1;
        if out != t.output {
            return Some(format!("{}: output {out}", said()));
        }
    }
    (g.nodes.len() != nodes.len())
        .then(|| format!("{} nodes, recorded {}", g.nodes.len(), nodes.len()))
}

#[test]
fn recorded_graphs_node_by_node_and_their_buffers() {
    let mut seen = 0;
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(FOLDER).unwrap() {
        let path = entry.unwrap().path();
        let mut text = String::new();
        flate2::read::GzDecoder::new(std::fs::File::open(&path).unwrap())
            .read_to_string(&mut text)
            .unwrap();
        let mut lines = text.lines().map(|l| serde_json::from_str(l).unwrap());
        let head: Value = lines.next().unwrap();
        let tensors: Vec<Value> = lines.collect();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let (gguf, settings) = (model(&head, &tensors), settings(&head));
        seen += 1;
        let g = match graph(&gguf, &settings) {
            Ok(g) => g,
            Err(e) => {
                wrong.push(format!("{name}: {e}"));
                continue;
            }
        };
        if let Some(d) = difference(&g, &tensors) {
            wrong.push(format!("{name}: {d}"));
        }
        let e = estimate(&gguf, &settings).unwrap();
        for b in e.buffers.iter().filter(|b| b.kind == Kind::Compute) {
            let recorded = head["compute"][b.buft.name()].as_u64();
            if recorded != Some(b.bytes) {
                wrong.push(format!("{name}: {:?} {} for {recorded:?}", b.buft, b.bytes));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(seen, 82);
}

/// A small model of an architecture without a recorded case.
fn small(arch: &str, numbers: &[(&str, u64)], layers: &[&[(&str, [u64; 3])]]) -> Gguf {
    let mut g = Gguf::default();
    let text = Meta::Text(arch.into());
    g.metadata.insert("general.architecture".into(), text);
    let common = [
        ("block_count", layers.len() as u64),
        ("embedding_length", 256),
        ("context_length", 4096),
    ];
    for (k, v) in common.iter().chain(numbers) {
        g.metadata.insert(format!("{arch}.{k}"), Meta::Unsigned(*v));
    }
    let mut offset = 0;
    let mut add = |name: String, [a, b, c]: [u64; 3]| {
        g.tensors.push(TensorInfo {
            name,
            ggml_type: tonnage_units::GgmlType::F32,
            ne: [a, b, c, 1],
            offset,
            bytes: 4 * a * b * c,
            part: 0,
        });
        offset += 4 * a * b * c;
    };
    add("token_embd.weight".into(), [256, 1000, 1]);
    let norm = match arch {
        "lfm2" => "token_embd_norm.weight",
        _ => "output_norm.weight",
    };
    add(norm.into(), [256, 1, 1]);
    for (i, tensors) in layers.iter().enumerate() {
        for (name, ne) in *tensors {
            add(format!("blk.{i}.{name}"), *ne);
        }
    }
    g
}

#[test]
fn architectures_without_a_recorded_case_are_built() {
    let ffn: [(&str, [u64; 3]); 3] = [
        ("ffn_gate.weight", [256, 512, 1]),
        ("ffn_up.weight", [256, 512, 1]),
        ("ffn_down.weight", [512, 256, 1]),
    ];
    // two groups, four heads of 128, states of 128
    let mamba2 = [
        ("attn_norm.weight", [256, 1, 1]),
        ("ssm_in.weight", [256, 2 * 512 + 2 * 2 * 128 + 4, 1]),
        ("ssm_conv1d.weight", [4, 512 + 512, 1]),
        ("ssm_conv1d.bias", [1024, 1, 1]),
        ("ssm_dt.bias", [4, 1, 1]),
        ("ssm_a", [1, 4, 1]),
        ("ssm_d", [1, 4, 1]),
        ("ssm_norm.weight", [256, 2, 1]),
        ("ssm_out.weight", [512, 256, 1]),
    ];
    let ssm = [
        ("ssm.conv_kernel", 4),
        ("ssm.inner_size", 512),
        ("ssm.state_size", 128),
        ("ssm.time_step_rank", 4),
        ("ssm.group_count", 2),
    ];
    let attention = [
        ("attn_q.weight", [256, 256, 1]),
        ("attn_k.weight", [256, 128, 1]),
        ("attn_v.weight", [256, 128, 1]),
        ("attn_output.weight", [256, 256, 1]),
        ("attn_q_norm.weight", [64, 1, 1]),
        ("attn_k_norm.weight", [64, 1, 1]),
        ("attn_norm.weight", [256, 1, 1]),
        ("ffn_norm.weight", [256, 1, 1]),
    ];
    let conv = [
        ("attn_norm.weight", [256, 1, 1]),
        ("ffn_norm.weight", [256, 1, 1]),
        ("shortconv.in_proj.weight", [256, 768, 1]),
        ("shortconv.conv.weight", [3, 256, 1]),
        ("shortconv.out_proj.weight", [256, 256, 1]),
    ];
    let delta = [
        ("attn_norm.weight", [256, 1, 1]),
        ("post_attention_norm.weight", [256, 1, 1]),
        ("attn_qkv.weight", [256, 1024, 1]),
        ("attn_gate.weight", [256, 512, 1]),
        ("ssm_conv1d.weight", [4, 1024, 1]),
        ("ssm_dt.bias", [4, 1, 1]),
        ("ssm_a", [4, 1, 1]),
        ("ssm_ba.weight", [256, 8, 1]),
        ("ssm_norm.weight", [128, 1, 1]),
        ("ssm_out.weight", [512, 256, 1]),
    ];
    let gated = [
        ("attn_norm.weight", [256, 1, 1]),
        ("post_attention_norm.weight", [256, 1, 1]),
        ("attn_q.weight", [256, 512, 1]),
        ("attn_k.weight", [256, 128, 1]),
        ("attn_v.weight", [256, 128, 1]),
        ("attn_output.weight", [256, 256, 1]),
        ("attn_q_norm.weight", [64, 1, 1]),
        ("attn_k_norm.weight", [64, 1, 1]),
    ];
    let heads = [
        ("attention.head_count", 4),
        ("attention.key_length", 64),
        ("attention.value_length", 64),
    ];
    let with = |a: &[(&'static str, [u64; 3])]| [a, &ffn[..]].concat();
    let kv = |list: [u64; 2]| {
        let items = list.into_iter().map(Meta::Unsigned).collect();
        Meta::Array(tonnage_model::readers::gguf::Array {
            of: "u32",
            len: 2,
            items,
        })
    };
    let (c, a, d, t) = (with(&conv), with(&attention), with(&delta), with(&gated));
    let numbers = |more: &[(&'static str, u64)]| [&heads[..], more].concat();
    let mut lfm2 = small("lfm2", &numbers(&[("shortconv.l_cache", 3)]), &[&c, &a]);
    lfm2.metadata
        .insert("lfm2.attention.head_count_kv".into(), kv([0, 2]));
    let next = [
        &ssm[..],
        &[
            ("full_attention_interval", 2),
            ("attention.head_count_kv", 2),
        ],
    ]
    .concat();
    // bytes of a state of one sequence, summed over layers, by hand
    let models = [
        (
            small("mamba2", &ssm, &[&mamba2, &mamba2]),
            2 * 4 * (3 * (512 + 2 * 2 * 128) + 128 * 512),
        ),
        (lfm2, 4 * 256 * 2),
        (
            small("qwen3next", &numbers(&next), &[&d, &t]),
            4 * (3 * (512 + 2 * 2 * 128) + 128 * 512),
        ),
    ];
    for (g, state) in models {
        for (devices, layers, n_seq) in
            [(1, 999, 1), (1, 999, 4), (2, 999, 2), (1, 1, 1), (0, 0, 1)]
        {
            let s = Settings {
                context_len: 2048,
                n_seq,
                devices: vec![Device::default(); devices],
                gpu_layers: layers,
                ..Settings::default()
            };
            let e = estimate(&g, &s).unwrap_or_else(|e| panic!("{:?}: {e}", g.architecture()));
            let kind = |k: Kind| -> u64 {
                let list = e.buffers.iter().filter(|b| b.kind == k);
                list.map(|b| b.bytes).sum()
            };
            assert_eq!(
                kind(Kind::RecurrentState),
                n_seq * state,
                "{:?}",
                g.architecture()
            );
            // at least the logits of every token
            assert!(kind(Kind::Compute) >= 512 * 1000 * 4);
            for b in &e.buffers {
                let sum: u64 = b.items.iter().map(|i| i.bytes).sum();
                assert_eq!(sum, b.bytes, "{:?} {s:?} {b:?}", g.architecture());
            }
        }
    }
}

/// A number that is easy to get wrong, and one after another.
fn next(state: &mut u64) -> u64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

#[test]
fn a_damaged_model_is_an_error_or_an_estimate_never_a_panic() {
    let odd = [
        0,
        1,
        2,
        3,
        7,
        31,
        32,
        33,
        255,
        256,
        4096,
        1 << 20,
        1 << 24,
        1 << 28,
        1 << 40,
        u64::MAX,
    ];
    let mut seed = 1;
    let mut estimates = 0;
    for name in [
        "llama-3.1-8b.2layers.cuda-fa-q8kv",
        "qwen3-30b-a3b.2layers.cuda-nofa",
        "gemma-3-4b.6layers.cuda-fa",
        "gpt-oss-20b.2layers.cuda-fa",
        "mamba-2.8b.2layers.cuda-fa",
        "mixtral-8x7b.2layers.cuda-nofa",
    ] {
        let file = std::fs::File::open(format!("{FOLDER}/{name}.jsonl.gz")).unwrap();
        let mut text = String::new();
        flate2::read::GzDecoder::new(file)
            .read_to_string(&mut text)
            .unwrap();
        let mut lines = text.lines().map(|l| serde_json::from_str(l).unwrap());
        let head: Value = lines.next().unwrap();
        let tensors: Vec<Value> = lines.collect();
        let (good, plain) = (model(&head, &tensors), settings(&head));
        for _ in 0..150 {
            let (mut g, mut s) = (good.clone(), plain.clone());
            for _ in 0..=next(&mut seed) % 2 {
                let value = odd[next(&mut seed) as usize % odd.len()];
                let at = next(&mut seed) as usize;
                match next(&mut seed) % 5 {
                    0 => {
                        let n = at % g.tensors.len();
                        let t = &mut g.tensors[n];
                        t.ne[at % 4] = value;
                        let rows = t.ne[1..].iter().try_fold(1u64, |a, b| a.checked_mul(*b));
                        // as the reader would have it
                        match rows.and_then(|r| t.ggml_type.bytes(t.ne[0], r).ok()) {
                            Some(b) => t.bytes = b,
                            None => continue,
                        }
                    }
                    1 => {
                        let n = at % g.tensors.len();
                        g.tensors.remove(n);
                    }
                    2 => {
                        s.n_seq = value;
                        s.context_len = odd[at % odd.len()];
                    }
                    3 => {
                        s.n_ubatch = value;
                        s.n_batch = odd[at % odd.len()];
                    }
                    _ => {
                        let n = at % g.metadata.len();
                        let key = g.metadata.keys().nth(n).unwrap().clone();
                        g.metadata.insert(key, Meta::Unsigned(value));
                    }
                }
            }
            estimates += usize::from(estimate(&g, &s).is_ok());
        }
    }
    // both outcomes are met
    assert!((100..800).contains(&estimates), "{estimates}");
}
